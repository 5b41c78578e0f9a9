"""Images of the held-out prompts by the base and by each checkpoint, and their scores."""

import omnitune.evaluation


localrules:
    judge_images,
    prepare_benchmark,


checkpoint import_prompts:
    # Prompts in a published format become our own, with their images beside them.
    input:
        sources=get_prompt_sources,
    output:
        prompts=paths.IMPORTED,
    log:
        "logs/import_prompts/{benchmark}.log",
    retries: 0
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        source=lambda wildcards: key_line("format", get_foreign(wildcards).format),
        language=lambda wildcards: key_line("language", get_foreign(wildcards).language),
        format=f"format: {omnitune.evaluation.IMPORT_FORMAT}",
    script:
        "../scripts/import_prompts.py"


checkpoint prepare_benchmark:
    # What the benchmark was read as: what images depend on, and what scores depend on beside them.
    input:
        images=get_prompt_images,
        models=get_measuring_models,
    output:
        protocol=paths.PROTOCOL,
        scoring=paths.SCORING,
    log:
        "logs/prepare_benchmark/{benchmark}.log",
    retries: 0
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        **key_params(Benchmark, get_benchmark, "images", "scores"),
        prompts=get_prompts,
        format=f"format: {omnitune.evaluation.PROTOCOL_FORMAT}",
    script:
        "../scripts/prepare_benchmark.py"


rule generate_images:
    input:
        weights=get_weights,
        base=get_base,
        protocol=get_protocol,
    output:
        part=paths.PART,
    log:
        "logs/generate_images/{experiment}/{step}/{benchmark}/{part}.log",
    benchmark:
        "logs/benchmarks/generate_images/{experiment}/{step}/{benchmark}/{part}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        **GPU_PARTITION,
        mem_mb=get_generating_memory,
        runtime=limited(480),
        gpus_per_node=min(NODE_GPUS, 1),
        gres=gres(min(NODE_GPUS, 1)),
    params:
        **key_params(Benchmark, get_benchmark, "parts"),
        transformer=get_transformer,
        format=f"format: {omnitune.evaluation.IMAGES_FORMAT}",
    script:
        "../scripts/generate_images.py"


rule judge_images:
    # Behind an endpoint; on the machine that runs Snakemake, as nodes of a cluster may have no network.
    input:
        parts=get_parts,
        protocol=get_protocol,
    output:
        judgements=paths.JUDGEMENTS,
    log:
        "logs/judge_images/{experiment}/{step}/{benchmark}/{judge}.log",
    benchmark:
        "logs/benchmarks/judge_images/{experiment}/{step}/{benchmark}/{judge}.tsv"
    wildcard_constraints:
        judge=one_of({judge.name for judge in JUDGES if judge.base_url}),
    retries: 0
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=limited(720),
        gpus_per_node=0,
    params:
        judge=get_judge,
        format=f"format: {omnitune.evaluation.JUDGEMENTS_FORMAT}",
    script:
        "../scripts/judge_images.py"


use rule judge_images as run_judge with:
    # The same by a model that runs here.
    wildcard_constraints:
        judge=one_of({judge.name for judge in JUDGES if not judge.base_url}),
    resources:
        **GPU_PARTITION,
        mem_mb=get_judging_memory,
        runtime=limited(720),
        gpus_per_node=min(NODE_GPUS, 1),
        gres=gres(min(NODE_GPUS, 1)),


checkpoint score_images:
    input:
        parts=get_parts,
        judgements=get_judgements,
        labels=get_labels,
        protocol=get_protocol,
        scoring=get_scoring,
    output:
        scores=paths.SCORES,
        generations=paths.GENERATIONS,
    log:
        "logs/score_images/{experiment}/{step}/{benchmark}.log",
    benchmark:
        "logs/benchmarks/score_images/{experiment}/{step}/{benchmark}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=limited(120),
    params:
        transformer=get_transformer,
        format=f"format: {omnitune.evaluation.SCORES_FORMAT}",
    script:
        "../scripts/score_images.py"


rule export_images:
    # The same images as the scorer of the prompts' format reads them, and the inputs of edits beside them.
    input:
        generations=get_generations,
        images=get_prompt_images,
    output:
        official=directory(paths.OFFICIAL),
    log:
        "logs/export_images/{experiment}/{step}/{benchmark}.log",
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        prompts=get_prompts,
        format=f"format: {omnitune.evaluation.EXPORT_FORMAT}",
    script:
        "../scripts/export_images.py"

"""Images of the held-out prompts by the base and by each checkpoint, and their scores."""


rule generate_images:
    input:
        weights=evaluated_weights,
        base=base_model,
        prompts=benchmark_prompts,
    output:
        part="experiments/{experiment}/evaluation/{step}/{benchmark}/parts/{part}.jsonl",
    log:
        "logs/generate_images/{experiment}/{step}-{benchmark}-{part}.log",
    benchmark:
        "logs/benchmarks/generate_images/{experiment}/{step}-{benchmark}-{part}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=480,
    params:
        settings=benchmark_protocol,
        transformer=starting_transformer,
        format_version=1,
    script:
        "../scripts/generate_images.py"


rule score_images:
    input:
        parts=benchmark_parts,
        prompts=benchmark_prompts,
    output:
        scores="experiments/{experiment}/evaluation/{step}/{benchmark}/scores.json",
        generations="experiments/{experiment}/evaluation/{step}/{benchmark}/generations.jsonl",
    log:
        "logs/score_images/{experiment}/{step}-{benchmark}.log",
    benchmark:
        "logs/benchmarks/score_images/{experiment}/{step}-{benchmark}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        settings=benchmark_settings,
        format_version=2,
    script:
        "../scripts/score_images.py"

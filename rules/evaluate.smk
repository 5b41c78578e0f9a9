"""Images of the held-out prompts by the base and by each checkpoint, and their scores."""


def evaluated_weights(wildcards):
    """Manifest of the weights to evaluate; step 0 is what the experiment started from."""
    if int(wildcards.step) == 0:
        return starting_conversion(wildcards)
    return conversion_of(wildcards.experiment, wildcards.step)


def benchmark_prompts(wildcards):
    return PROJECT.benchmarks[wildcards.benchmark].prompts


def benchmark_protocol(wildcards):
    """What the images depend on: how they are checked later is no reason to make them again."""
    return PROJECT.benchmarks[wildcards.benchmark].model_dump(mode="json", exclude={"check"})


def benchmark_settings(wildcards):
    return PROJECT.benchmarks[wildcards.benchmark].model_dump(mode="json")


def benchmark_parts(wildcards):
    return expand(
        "experiments/{experiment}/evaluation/{step}/{benchmark}/parts/{part}.jsonl",
        part=range(PROJECT.benchmarks[wildcards.benchmark].parts),
        **wildcards,
    )


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
    threads: 1
    resources:
        mem_mb=4000,
        runtime=480,
    conda:
        "../envs/evaluate.yaml"
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
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    conda:
        "../envs/evaluate.yaml"
    params:
        settings=benchmark_settings,
        format_version=1,
    script:
        "../scripts/score_images.py"

"""Which rows of the data can be trained on, and a ledger of those that cannot."""


def source_files(wildcards):
    return [str(path) for path in SOURCES[wildcards.dataset][wildcards.source].files]


def validated_sources(wildcards):
    return expand(
        "prepared/{dataset}/validation/sources/{source}/samples.parquet",
        dataset=wildcards.dataset,
        source=SOURCES[wildcards.dataset],
    )


def max_reject_fraction(wildcards):
    return PROJECT.dataset(wildcards.dataset).max_reject_fraction


def samples_per_shard(wildcards):
    return PROJECT.dataset(wildcards.dataset).samples_per_shard


rule validate_source:
    input:
        samples=source_files,
    output:
        samples="prepared/{dataset}/validation/sources/{source}/samples.parquet",
        rejected="prepared/{dataset}/validation/sources/{source}/rejected.jsonl",
        summary="prepared/{dataset}/validation/sources/{source}/summary.json",
    log:
        "logs/validate_source/{dataset}/{source}.log",
    benchmark:
        "logs/benchmarks/validate_source/{dataset}/{source}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
    conda:
        "../envs/data.yaml"
    params:
        format_version=1,
    script:
        "../scripts/validate_source.py"


checkpoint validate_dataset:
    input:
        sources=validated_sources,
    output:
        samples="prepared/{dataset}/validation/samples.parquet",
        rejected="prepared/{dataset}/validation/rejected.jsonl",
        summary="prepared/{dataset}/validation/summary.json",
        shards=directory("prepared/{dataset}/validation/shards"),
    log:
        "logs/validate_dataset/{dataset}.log",
    benchmark:
        "logs/benchmarks/validate_dataset/{dataset}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    conda:
        "../envs/data.yaml"
    params:
        max_reject_fraction=max_reject_fraction,
        samples_per_shard=samples_per_shard,
        format_version=1,
    script:
        "../scripts/validate_dataset.py"

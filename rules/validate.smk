"""Which rows of the data can be trained on, and a ledger of those that cannot."""


rule validate_source:
    input:
        samples=local_files,
        tokenizer=dataset_base_manifest,
    output:
        samples="prepared/{dataset}/validation/sources/{source}/samples.parquet",
        rejected="prepared/{dataset}/validation/sources/{source}/rejected.jsonl",
        summary="prepared/{dataset}/validation/sources/{source}/summary.json",
    log:
        "logs/validate_source/{dataset}/{source}.log",
    benchmark:
        "logs/benchmarks/validate_source/{dataset}/{source}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=720,
    params:
        files=source_files,
        versions=url_versions,
        tokenizer=dataset_base,
        checks=validation_checks,
        format_version=2,
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
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        max_reject_fraction=max_reject_fraction,
        cut=shard_cut,
        format_version=2,
    script:
        "../scripts/validate_dataset.py"

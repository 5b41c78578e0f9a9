"""Which rows of the data can be trained on, and a ledger of those that cannot."""

import omnitune.validation


rule validate_source:
    input:
        samples=get_local_samples,
        tokenizer=get_tokenizer,
    output:
        samples=f"{paths.VALIDATED_SOURCE}/{paths.SAMPLES}",
        rejected=f"{paths.VALIDATED_SOURCE}/{paths.REJECTED}",
        summary=f"{paths.VALIDATED_SOURCE}/{paths.SUMMARY}",
    log:
        "logs/validate_source/{dataset}/{source}.log",
    benchmark:
        "logs/benchmarks/validate_source/{dataset}/{source}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, threads: 500 + 1500 * threads,
        runtime=limited(720),
    params:
        **key_params(DataOptions, get_data, "samples", prefix="data."),
        files=get_source_files,
        versions=get_url_versions,
        source_roots=get_source_roots,
        format=f"format: {omnitune.validation.FORMAT}",
    script:
        "../scripts/validate_source.py"


checkpoint validate_dataset:
    input:
        sources=get_validated_sources,
    output:
        samples=f"{paths.VALIDATION}/{paths.SAMPLES}",
        rejected=f"{paths.VALIDATION}/{paths.REJECTED}",
        summary=f"{paths.VALIDATION}/{paths.SUMMARY}",
        shards=directory(paths.MANIFESTS),
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
        **key_params(DataOptions, get_data, "manifests", prefix="data."),
        format=f"format: {omnitune.validation.FORMAT}",
    script:
        "../scripts/validate_dataset.py"

"""WebDataset tars under the pixel limits, and an index of what lies where."""

import omnitune.sharding


rule shard_dataset:
    input:
        digest=get_manifest_digest,
    output:
        **get_tar_outputs(),
    log:
        "logs/shard_dataset/{dataset}/{source}-{shard}.log",
    benchmark:
        "logs/benchmarks/shard_dataset/{dataset}/{source}-{shard}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, threads: 500 + 1500 * threads,
        runtime=limited(120),
    params:
        **key_params(DataOptions, get_data, "shards", prefix="data."),
        tars=get_tar_folder,
        urls=get_image_urls,
        format=f"format: {omnitune.sharding.FORMAT}",
    script:
        "../scripts/shard_dataset.py"


checkpoint index_dataset:
    input:
        parts=get_shard_indexes,
    output:
        index=paths.INDEX,
        mapped=paths.MAPPED_INDEX,
        digests=directory(paths.SHARD_DIGESTS),
    log:
        "logs/index_dataset/{dataset}.log",
    benchmark:
        "logs/benchmarks/index_dataset/{dataset}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        format=f"format: {omnitune.sharding.INDEX_FORMAT}",
    script:
        "../scripts/index_dataset.py"

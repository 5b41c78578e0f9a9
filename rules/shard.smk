"""WebDataset tars under the pixel limits, and an index of what lies where."""


rule shard_dataset:
    input:
        manifest=shard_manifest,
    output:
        tar="prepared/{dataset}/shards/{source}-{shard}.tar",
    log:
        "logs/shard_dataset/{dataset}/{source}-{shard}.log",
    benchmark:
        "logs/benchmarks/shard_dataset/{dataset}/{source}-{shard}.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        limits=pixel_limits,
        format_version=1,
    script:
        "../scripts/shard_dataset.py"


rule index_dataset:
    # A tar is a function of its manifest and the limits, both named here: one that is built anew has the same bytes,
    # so its age is of no interest (`ancient`) and nothing behind it runs again.
    input:
        manifests=shard_manifests,
        tars=ancient(shard_tars),
    output:
        index="prepared/{dataset}/shards/index.parquet",
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
        limits=pixel_limits,
        format_version=1,
    script:
        "../scripts/index_dataset.py"

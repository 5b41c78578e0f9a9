"""Encoded data (data.encode): VAE posteriors and text features, stored once for all trainings."""


localrules:
    set_encoding,


rule set_encoding:
    # A file, as for shards: the training must notice a change, and takes the encoded groups as `ancient`.
    input:
        after=ancient("prepared/{dataset}/validation/summary.json"),
    output:
        settings="prepared/{dataset}/encoded/{model}/settings.json",
    log:
        "logs/set_encoding/{dataset}/{model}.log",
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        settings=encoding_settings,
    script:
        "../scripts/write_settings.py"


rule encode_dataset:
    # The encoded tars are not declared: Snakemake would delete them when a job fails, and a finished one need not be made
    # again. Shards are `ancient` as for the index: they are functions of their plan and the settings, named here.
    input:
        options=ancient(encoding_options),
        plan="prepared/{dataset}/shards/plans/{source}-{group}.sha256",
        sharding="prepared/{dataset}/shards/settings.json",
        settings="prepared/{dataset}/encoded/{model}/settings.json",
        shards=ancient(group_shards),
        base="resources/pretrained/{model}/manifest.json",
    output:
        index="prepared/{dataset}/encoded/{model}/groups/{source}-{group}.parquet",
    log:
        "logs/encode_dataset/{dataset}/{model}/{source}-{group}.log",
    benchmark:
        "logs/benchmarks/encode_dataset/{dataset}/{model}/{source}-{group}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=1440,
        # With GPUs: gpus_per_node=N, one process for each, and on SLURM gres="gpu:N" as well.
        gpus_per_node=0,
    params:
        format_version=1,
    script:
        "../scripts/encode_dataset.py"

"""Encoded data (data.encode): VAE posteriors and text features, stored once for all trainings."""

import omnitune.encoding


rule encode_dataset:
    # The encoded tars are not declared: Snakemake would delete them when a job fails, and a finished one need not be
    # made again.
    input:
        digests=get_group_digests,
        base=get_encoding_base,
    output:
        index=paths.ENCODED_GROUP,
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
        **key_params(DataOptions, get_data, "encodings", prefix="data."),
        format=f"format: {omnitune.encoding.FORMAT}",
    script:
        "../scripts/encode_dataset.py"

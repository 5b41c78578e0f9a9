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
    threads: get_encoding_threads
    resources:
        **GPU_PARTITION,
        mem_mb=get_encoding_memory,
        runtime=limited(1440),
        gpus_per_node=get_encoding_gpus,  # one process for each
        gres=get_encoding_gres,
    params:
        **key_params(DataOptions, get_data, "encodings", prefix="data."),
        format=f"format: {omnitune.encoding.FORMAT}",
    script:
        "../scripts/encode_dataset.py"

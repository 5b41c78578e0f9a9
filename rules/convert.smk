"""From a training checkpoint to the published weight format."""

import omnitune.conversion


checkpoint convert_checkpoint:
    # The identity says nothing of a checkpoint that its own state does not; by it a dry run knows what a training
    # leads to.
    input:
        checkpoint=get_checkpoint,
        identity=get_identity,
        base=get_other_parts,
    output:
        manifest=paths.CONVERSION,
    log:
        "logs/convert_checkpoint/{experiment}/{step}-{weights}.log",
    benchmark:
        "logs/benchmarks/convert_checkpoint/{experiment}/{step}-{weights}.tsv"
    # The folder of a checkpoint is its number; an average, and each format, is a folder of weights inside of it.
    wildcard_constraints:
        step=r"[1-9]\d*",
    conda:
        "../envs/train.yaml"
    threads: 2  # one reads, computes and writes, one hashes
    resources:
        mem_mb=4000,  # for any size of model: tensors are converted one at a time
        runtime=limited(120),
    params:
        **key_params(ExperimentOptions, get_options, "conversions"),
        transformer=get_starting_transformer,
        format=f"format: {omnitune.conversion.FORMAT}",
    script:
        "../scripts/convert_checkpoint.py"

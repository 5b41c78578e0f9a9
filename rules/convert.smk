"""From a training checkpoint to the published weight format."""


rule convert_checkpoint:
    input:
        options=ancient(options_file),
        train="experiments/{experiment}/train.json",
        base=base_model,
        start=starting_conversion,
    output:
        manifest="experiments/{experiment}/checkpoint-{step}/{weights}/conversion.json",
    log:
        "logs/convert_checkpoint/{experiment}/{step}-{weights}.log",
    benchmark:
        "logs/benchmarks/convert_checkpoint/{experiment}/{step}-{weights}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        transformer=starting_transformer,
        format_version=2,
    script:
        "../scripts/convert_checkpoint.py"

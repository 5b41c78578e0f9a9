"""Base weights and the demo's data: what the workflow needs from outside, or builds."""

import omnitune.demo
import omnitune.pretrained

# Nodes of a cluster seldom reach the internet; where snakemake runs, one does.
if not DOWNLOAD_PARTITION:

    localrules:
        prepare_pretrained,


DEMO_TASKS = ["t2i", "edit", "in_context", "star", "background", "known"]


checkpoint prepare_pretrained:
    input:
        local=get_local_base,
    output:
        manifest=paths.BASE_MANIFEST,
    log:
        "logs/prepare_pretrained/{model}.log",
    benchmark:
        "logs/benchmarks/prepare_pretrained/{model}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        **DOWNLOAD_PARTITION,
        mem_mb=4000,
        runtime=limited(240),
    params:
        **key_params(ModelOptions, get_base_source, "base"),
        format=f"format: {omnitune.pretrained.FORMAT}",
    script:
        "../scripts/prepare_pretrained.py"


checkpoint prepare_demo_data:
    output:
        training=expand(f"{paths.DEMO}/{{task}}.jsonl", task=DEMO_TASKS),
        heldout=expand(f"{paths.DEMO}/heldout/{{task}}.jsonl", task=DEMO_TASKS),
    log:
        "logs/prepare_demo_data.log",
    benchmark:
        "logs/benchmarks/prepare_demo_data.tsv"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        format=f"format: {omnitune.demo.FORMAT}",
    script:
        "../scripts/prepare_demo_data.py"

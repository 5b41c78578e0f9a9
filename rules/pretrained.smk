"""Base weights and the demo's data: what the workflow needs from outside, or builds."""

DEMO_TASKS = ["t2i", "edit", "in_context", "background"]


rule prepare_pretrained:
    input:
        local=local_pretrained,
    output:
        manifest="resources/pretrained/{model}/manifest.json",
    log:
        "logs/prepare_pretrained/{model}.log",
    benchmark:
        "logs/benchmarks/prepare_pretrained/{model}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    params:
        source=pretrained_keys,
        cache_dir=download_cache,
        format_version=1,
    script:
        "../scripts/prepare_pretrained.py"


rule prepare_demo_data:
    output:
        training=expand("resources/demo/{task}.jsonl", task=DEMO_TASKS),
        heldout=expand("resources/demo/heldout/{task}.jsonl", task=DEMO_TASKS),
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
        format_version=1,
    script:
        "../scripts/prepare_demo_data.py"

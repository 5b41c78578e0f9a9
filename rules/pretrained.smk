"""Base weights and the demo's data: what the workflow needs from outside, or builds."""

DEMO_TASKS = ["t2i", "edit", "in_context", "background"]


def pretrained_source(wildcards):
    for start in PROJECT.starts.values():
        if start.model == wildcards.model:
            return start.source
    raise WorkflowError(f"resources/pretrained/{wildcards.model}: no experiment starts from this model.")


def local_pretrained(wildcards):
    """A local pipeline folder is an input; a repository id or `demo` is not a file."""
    index = Path(pretrained_source(wildcards).pretrained_model_path) / "model_index.json"
    return str(index) if index.is_file() else []


def pretrained_keys(wildcards):
    return pretrained_source(wildcards).model_dump(mode="json", exclude={"arch_opt"})


def download_cache(wildcards):
    caches = [
        options.cache_dir
        for name, options in PROJECT.experiments.items()
        if PROJECT.starts[name].model == wildcards.model and options.cache_dir
    ]
    return caches[0] if caches else ""


rule prepare_pretrained:
    input:
        local=local_pretrained,
    output:
        model="resources/pretrained/{model}/model_index.json",
    log:
        "logs/prepare_pretrained/{model}.log",
    benchmark:
        "logs/benchmarks/prepare_pretrained/{model}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=240,
    conda:
        "../envs/train.yaml"
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
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    conda:
        "../envs/data.yaml"
    params:
        format_version=1,
    script:
        "../scripts/prepare_demo_data.py"

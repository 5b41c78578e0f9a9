"""WebDataset tars under the pixel limits, and an index of what lies where."""


def pixel_limits(wildcards):
    keys = {"max_output_pixels", "max_input_pixels", "max_side_length"}
    return PROJECT.dataset(wildcards.dataset).model_dump(include=keys)


def manifests_of(dataset):
    """Known once validation has run: one manifest for each shard that has accepted samples."""
    folder = Path(checkpoints.validate_dataset.get(dataset=dataset).output.shards)
    return sorted(str(path) for path in folder.glob("*.jsonl"))


def tars_of(dataset):
    return [f"prepared/{dataset}/shards/{Path(manifest).stem}.tar" for manifest in manifests_of(dataset)]


def shard_manifests(wildcards):
    return manifests_of(wildcards.dataset)


def shard_manifest(wildcards):
    folder = checkpoints.validate_dataset.get(dataset=wildcards.dataset).output.shards
    return f"{folder}/{wildcards.source}-{wildcards.shard}.jsonl"


def shard_tars(wildcards):
    return tars_of(wildcards.dataset)


rule shard_dataset:
    input:
        manifest=shard_manifest,
    output:
        tar="prepared/{dataset}/shards/{source}-{shard}.tar",
    log:
        "logs/shard_dataset/{dataset}/{source}-{shard}.log",
    benchmark:
        "logs/benchmarks/shard_dataset/{dataset}/{source}-{shard}.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=120,
    conda:
        "../envs/data.yaml"
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
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    conda:
        "../envs/data.yaml"
    params:
        limits=pixel_limits,
        format_version=1,
    script:
        "../scripts/index_dataset.py"

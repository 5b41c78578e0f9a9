"""WebDataset tars under the pixel limits, and an index of what lies where."""


localrules:
    set_sharding,
    plan_shards,


rule set_sharding:
    # A file of its own, not params of the rules below: Snakemake overlooks changed params of a job behind an `ancient` input
    # that is being made. It comes after validation, since what a checkpoint has let run before does not count as made.
    input:
        after=ancient("prepared/{dataset}/validation/summary.json"),
    output:
        settings="prepared/{dataset}/shards/settings.json",
    log:
        "logs/set_sharding/{dataset}.log",
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    params:
        settings=shard_settings,
    script:
        "../scripts/write_settings.py"


rule plan_shards:
    # What shards are made from, as the output of a job that runs whenever one of them does. Rules behind shards need one:
    # Snakemake overlooks every reason to run a job behind an `ancient` output that is being made.
    input:
        digests=group_digests,
    output:
        plan="prepared/{dataset}/shards/plans/{source}-{group}.sha256",
    log:
        "logs/plan_shards/{dataset}/{source}-{group}.log",
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=500,
        runtime=10,
    shell:
        "cat {input.digests:q} > {output.plan:q} 2> {log:q}"


rule shard_dataset:
    input:
        manifest=ancient(shard_manifest),
        digest=shard_digest,
        settings="prepared/{dataset}/shards/settings.json",
    output:
        **shard_outputs(),
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
        format_version=2,
    script:
        "../scripts/shard_dataset.py"


rule index_dataset:
    # A shard is a function of its plan and the settings, both named here: one that is built anew has the same bytes, so its
    # age is of no interest (`ancient`). Its own index stands for it, as the loss of an `ancient` input does rerun a job.
    input:
        plans=dataset_plans,
        settings="prepared/{dataset}/shards/settings.json",
        parts=ancient(shard_indexes),
    output:
        index="prepared/{dataset}/shards/index.parquet",
        mapped="prepared/{dataset}/shards/index.arrow",
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
        format_version=2,
    script:
        "../scripts/index_dataset.py"

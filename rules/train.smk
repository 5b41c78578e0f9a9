"""Training: several processes, on one node or many, with checkpoints that survive a killed job."""


rule train_experiment:
    # The checkpoints are not declared: Snakemake would delete them when a job fails, and they are what it goes on from.
    input:
        options=ancient(options_file),
        mixture=experiment_mixture,
        index=experiment_index,
        shards=ancient(experiment_shards),
        encoding=experiment_encoding,
        encoded=ancient(experiment_encodings),
        base=base_model,
        start=starting_conversion,
        adapter=starting_adapter,
        heldout=ancient(heldout_samples),
    output:
        manifest="experiments/{experiment}/train.json",
    log:
        "logs/train_experiment/{experiment}.log",
    benchmark:
        "logs/benchmarks/train_experiment/{experiment}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=7200,
        # Several nodes on SLURM: set nodes and tasks, and gpus_per_node with gres="gpu:N" where there are GPUs. The key
        # `mpi` lets the job run in the batch step, from where it starts one launcher per node itself.
        nodes=1,
        tasks=1,
        gpus_per_node=0,
        mpi="",
    params:
        weights_depend_on=training_keys,
        base=base_folder,
        encoded=encoded_folder,
        transformer=starting_transformer,
        format_version=1,
    script:
        "../scripts/train_experiment.py"

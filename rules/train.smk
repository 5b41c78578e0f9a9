"""Training: several processes, on one node or many, with checkpoints that survive a killed job."""

import omnitune.training


localrules:
    prepare_training,


checkpoint prepare_training:
    # What the training is a function of: options, data and starting weights. Refuses a training whose checkpoints are
    # of another: a job that has begun would have lost its train.json.
    input:
        index=get_index,
        encodings=get_encodings,
        base=get_base,
        start=get_starting_weights,
        adapter=get_starting_adapter,
    output:
        identity=paths.IDENTITY,
    log:
        "logs/prepare_training/{experiment}.log",
    retries: 0
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        **key_params(ExperimentOptions, get_options, "weights"),
        mixture=get_ratios,
        format=f"format: {omnitune.training.FORMAT}",
    script:
        "../scripts/prepare_training.py"


checkpoint train_experiment:
    # The checkpoints are not declared: Snakemake would delete them when a job fails, and they are what it goes on from.
    input:
        identity=get_identity,
    output:
        manifest=paths.TRAINED,
    log:
        "logs/train_experiment/{experiment}.log",
    benchmark:
        "logs/benchmarks/train_experiment/{experiment}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 2
    resources:
        mem_mb=get_training_memory,
        runtime=7200,
        # Several nodes on SLURM: set nodes and tasks, and gpus_per_node with gres="gpu:N" where there are GPUs. The key
        # `mpi` lets the job run in the batch step, from where it starts one launcher per node itself.
        nodes=1,
        tasks=1,
        gpus_per_node=get_training_gpus,
        mpi="",
    params:
        **key_params(ExperimentOptions, get_options, "checkpoints"),
        format=f"format: {omnitune.training.FORMAT}",
    script:
        "../scripts/train_experiment.py"

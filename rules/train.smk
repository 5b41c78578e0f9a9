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
    threads: get_training_threads
    resources:
        **GPU_PARTITION,
        mem_mb=get_training_memory,
        runtime=get_training_runtime,
        # One task on each node, and no other number for each GPU. The key `mpi` lets the job run in the batch step,
        # from where it starts one launcher on each node itself.
        nodes=get_training_nodes,
        tasks=get_training_nodes,
        tasks_per_gpu=0,
        gpus_per_node=get_training_gpus,
        gres=get_training_gres,
        mpi="",
        slurm_extra=f"--signal=USR1@{CLUSTER.save_seconds}",
    params:
        **key_params(ExperimentOptions, get_options, "checkpoints"),
        format=f"format: {omnitune.training.FORMAT}",
    script:
        "../scripts/train_experiment.py"

"""What jobs ask for: nodes and GPUs, threads, memory and time, within the limits of the cluster, which win."""

CLUSTER = PROJECT.cluster
NODE_GPUS = CLUSTER.gpus_per_node if ON_CLUSTER else len(GPUS)
GPU_PARTITION = (
    {"slurm_partition": CLUSTER.gpu_partition}
    if ON_CLUSTER and NODE_GPUS and CLUSTER.gpu_partition
    else {}
)
DOWNLOAD_PARTITION = (
    {"slurm_partition": CLUSTER.download_partition}
    if ON_CLUSTER and CLUSTER.download_partition
    else {}
)


def limited(minutes):
    """Of a job's time, what the cluster allows."""
    return min(minutes, CLUSTER.max_runtime or minutes) if ON_CLUSTER else minutes


def threads_on_node(threads):
    return min(threads, CLUSTER.cpus_per_node or threads) if ON_CLUSTER else threads


def gres(gpus):
    """GPUs of each node as SLURM is asked for them."""
    kind = f"{CLUSTER.gpu_type}:" if CLUSTER.gpu_type else ""
    return f"gpu:{kind}{gpus}" if ON_CLUSTER and gpus else ""


# ------------------------------------------------------------------ encode


def get_encoding_gpus(wildcards):
    """One for each tar, if there are as many."""
    group = wildcards.source, int(wildcards.group)
    tars = PROJECT.groups(wildcards.dataset).get(group, [])
    return min(NODE_GPUS, max(len(tars), 1))


def get_encoding_gres(wildcards):
    return gres(get_encoding_gpus(wildcards))


def get_encoding_threads(wildcards):
    return threads_on_node(2 * max(get_encoding_gpus(wildcards), 1))


def get_encoding_memory(wildcards):
    base = Path(paths.PRETRAINED.format(**wildcards))
    processes = max(get_encoding_gpus(wildcards), 1)
    return host_memory_mb([base / "vae", base / "mllm"], 4, processes, least=8000)


# ------------------------------------------------------------------ train


def get_training_nodes(wildcards):
    """On a single machine one, unless it is inside of an allocation."""
    if not ON_CLUSTER:
        return CLUSTER.nodes or 1
    return CLUSTER.nodes_for(get_options(wildcards).train.num_processes)


def get_training_processes(wildcards):
    """Of each node."""
    processes = get_options(wildcards).train.num_processes
    return max(processes // get_training_nodes(wildcards), 1)


def get_training_gpus(wildcards):
    """One for each process. On a machine with fewer, the job says so."""
    return get_training_processes(wildcards) if NODE_GPUS else 0


def get_training_gres(wildcards):
    return gres(get_training_gpus(wildcards))


def get_training_threads(wildcards):
    processes = get_training_processes(wildcards)
    return threads_on_node(training_threads(get_options(wildcards), processes))


def get_training_memory(wildcards):
    transformer = PROJECT.starts[wildcards.experiment].transformer
    processes = get_training_processes(wildcards)
    return training_memory_mb(get_options(wildcards), transformer, processes)


def get_training_runtime(wildcards):
    metrics = Path(paths.METRICS.format(**wildcards))
    return limited(training_minutes(get_options(wildcards), metrics))


# ------------------------------------------------------------------ evaluate


def get_generating_memory(wildcards):
    step = EvaluatedStep.parse(wildcards.step)
    loaded = PROJECT.loaded(wildcards.experiment, step, wildcards.benchmark)
    return host_memory_mb(loaded, 4)


def get_judging_memory(wildcards):
    """Of a model that is not downloaded yet, what a small one takes."""
    folders = judge_folders(get_benchmark(wildcards).judge(wildcards.judge))
    return host_memory_mb(folders, 4, least=4000 if folders else 32000)

"""`omnitune plan` and `omnitune train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from omnitune.cli.options import Base, Config, Index, option
from omnitune.stages import Experiment


def plan(
    config: Annotated[Path, typer.Argument(help="Options file of the experiment (config/options/*.yml).")],
    samples_per_second: Annotated[
        float | None,
        option("samples_per_second", "Rate over all processes, if not what the experiment's own steps took.", min=1e-9),
    ] = None,
    gpu_memory_gb: Annotated[
        float | None,
        option("gpu_memory_gb", "Memory of each GPU in 10^9 bytes, if not that of this machine's.", min=0.1),
    ] = None,
    nodes: Annotated[int, option("nodes", "Nodes that the processes run on.", min=1)] = 1,
    index: Index = None,
) -> None:
    """Say what a training will take, from its options and the shards' index: memory, epochs, disk, hours.

    Needs neither a GPU nor weights nor, for a first estimate from the limits of the options, shards.

    Where it does not fit, says what to change.
    """
    from rich.console import Console

    from omnitune.planning.plan import Rate, plan_experiment
    from omnitune.planning.tables import plan_tables, plan_warnings

    rate = Rate(samples_per_second, "--samples_per_second") if samples_per_second else None
    found = plan_experiment(config, index, nodes=nodes, gpu_memory_gb=gpu_memory_gb, rate=rate)
    console = Console()
    console.print(*plan_tables(found), sep="\n")
    for warning in plan_warnings(found):
        console.print(f"Note: {warning}", soft_wrap=True)


def train(
    config: Config,
    num_processes: Annotated[
        int, option("num_processes", "Training processes on all nodes. 0: as many as the batch sizes say.")
    ] = 0,
    rank: Annotated[int, option("rank", "Number of this node, from 0.")] = 0,
    world_size: Annotated[int, option("world_size", "Number of nodes.")] = 1,
    master_addr: Annotated[str, option("master_addr", "Host name or address of node 0.")] = "127.0.0.1",
    master_port: Annotated[int, option("master_port", "Port on node 0. 0: a free one, on a single node.")] = 0,
    num_threads: Annotated[int, option("num_threads", "CPU threads of each process.")] = 1,
    slurm: Annotated[bool, typer.Option("--slurm", help="Read --rank from SLURM_NODEID (inside srun).")] = False,
    base: Base = None,
    transformer: Annotated[
        Path | None, option("transformer", "Transformer folder to start from, if not the workflow's.")
    ] = None,
    index: Index = None,
    encoded: Annotated[
        Path | None, option("encoded", "Encoded data (data.encode), if not prepared/{dataset}/encoded/{model}.")
    ] = None,
    output: Annotated[Path | None, option("output", "Experiment's folder, if not experiments/{name}.")] = None,
) -> None:
    """Train an experiment on prepared data, or go on with it; several nodes each run this command with their --rank."""
    from omnitune.distributed.processes import Topology
    from omnitune.launching.job import launch_task
    from omnitune.launching.launch import launch

    experiment = Experiment.alone(config)
    processes = num_processes or experiment.options.train.num_processes
    if processes % world_size:
        raise ValueError(f"--num_processes: {processes} is no multiple of --world_size {world_size} nodes.")
    if slurm and "SLURM_NODEID" not in os.environ:
        raise ValueError("--slurm: SLURM_NODEID is not set; give this option only to commands that srun starts.")
    node = int(os.environ["SLURM_NODEID"]) if slurm else rank
    files = experiment.training_files(base=base, transformer=transformer, index=index, encoded=encoded, output=output)
    topology = Topology(processes // world_size, world_size, node, master_addr, master_port, num_threads)
    run_node = launch_task if slurm else launch
    run_node(experiment.options, files, topology)

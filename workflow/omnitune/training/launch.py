"""Starting a training: one `accelerate launch` per node."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omnitune.config import ExperimentOptions, require_processes
from omnitune.config.training import TrainOptions
from omnitune.files import lock
from omnitune.launcher import Topology, accelerate_command, launch_environment, require_gpus, run

WRAPPED_BLOCK = "OmniGen2TransformerBlock"  # FSDP shards each of these on its own


@dataclass(frozen=True)
class TrainingFiles:
    """What a training reads and writes.

    Attributes:
        config: options file.
        base: pipeline folder with VAE, text encoder and tokenizer.
        transformer: folder of the transformer to start from.
        index: prepared/{dataset}/shards/index.parquet.
        encoded: prepared/{dataset}/encoded/{model}; read only where data.encode asks for it.
        output: experiments/{experiment}.
    """

    config: Path
    base: Path
    transformer: Path
    index: Path
    encoded: Path
    output: Path

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [word for name, path in vars(self).items() for word in (f"--{name}", str(path))]


def launch_command(topology: Topology, train: TrainOptions, arguments: list[str]) -> list[str]:
    """The `accelerate launch` command of one node; raises ValueError for several nodes without a fixed port."""
    sharding: list[str] = []
    if topology.world_size > 1:
        sharding += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        sharding += ["--fsdp_transformer_layer_cls_to_wrap", WRAPPED_BLOCK]
        sharding += ["--fsdp_reshard_after_forward", str(train.reshard_after_forward).lower()]
        sharding += ["--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false"]
    return accelerate_command(topology, "omnitune.training.loop", arguments, sharding, train.mixed_precision)


def lock_experiment(output: Path) -> IO[str]:
    """Takes the experiment's folder for this training; raises ValueError if another one holds it."""
    return lock(output / ".train.lock", f"{output}: another training is writing here. Wait for it or stop it.")


def launch(options: ExperimentOptions, files: TrainingFiles, topology: Topology) -> None:
    """Runs this node's part of a training and waits for it.

    Raises:
        ConfigError: if the batch sizes do not fit the number of processes.
        ValueError: if a file is missing, or the training failed; its own message stands above in the log then.
    """
    require_processes(options, topology.world_size, str(files.config))
    require_gpus(topology.processes_per_node, f"Raise batch_size or gradient_accumulation_steps in {files.config}.")
    encoded = [files.encoded] if options.data.encode else []
    for path in (files.index, files.transformer, files.base, *encoded):
        if not path.exists():
            raise ValueError(f"{path} is missing. `snakemake --cores 2 train` makes all that a training needs.")
    if topology.rank == 0:
        lock_experiment(
            files.output
        ).close()  # refuse here, with one message; the training itself holds it from its start
    command = launch_command(topology, options.train, files.arguments())
    code = run(command, launch_environment(topology.threads_per_process))
    if code:
        raise ValueError(f"training {options.name} failed with exit code {code}; its messages stand above.")


def launch_job(
    options: ExperimentOptions, files: TrainingFiles, *, nodes: int, gpus_per_node: int, threads: int
) -> None:
    """Runs a whole training from inside a job: here, or with one launcher per node of the SLURM allocation.

    Args:
        nodes: nodes of the job.
        gpus_per_node: GPUs of each node, one process for each; 0 on CPU, where the batch sizes say how many.
        threads: CPU threads of each node.
    """
    processes = gpus_per_node or max(options.train.num_processes // nodes, 1)
    topology = Topology(processes, nodes, threads_per_process=max(threads // processes, 1))
    require_processes(options, topology.world_size, str(files.config))
    if nodes == 1:
        launch(options, files, topology)
        return
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        raise ValueError(
            f"nodes: {nodes} is not allowed outside of SLURM; take --workflow-profile workflow/profiles/slurm, or start "
            "`omnitune train` on each node (see its --help)."
        )
    command = srun_command(files, topology, job_id)
    code = run(command, dict(os.environ))
    if code:
        raise ValueError(
            f"training {options.name} on {nodes} nodes failed with exit code {code}; see the messages above."
        )


def srun_command(files: TrainingFiles, topology: Topology, job_id: str) -> list[str]:
    """One launcher on each node of a SLURM job; each reads its own number from SLURM_NODEID."""
    names = _output_of(["squeue", "--noheader", "--job", job_id, "--format", "%N"])
    hosts = _output_of(["scontrol", "show", "hostnames", names]).splitlines()
    if len(hosts) != topology.nodes:
        raise ValueError(
            f"SLURM gave {len(hosts)} node(s) ({names}) to a training on {topology.nodes}. Set both resources: "
            f"--set-resources train_experiment:nodes={topology.nodes} train_experiment:tasks={topology.nodes}"
        )
    address = _address_of(hosts[0])
    nodes = str(topology.nodes)
    launcher = [sys.executable, "-m", "omnitune.cli", "train", "--slurm", *files.arguments()]
    launcher += ["--num_processes", str(topology.world_size), "--world_size", nodes]
    launcher += ["--num_threads", str(topology.threads_per_process)]
    # Two jobs may share a node, so the port comes from the job's number.
    launcher += ["--master_addr", address, "--master_port", str(20000 + int(job_id) % 20000)]
    step = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    return [*step, "--cpus-per-task", str(topology.threads_per_process * topology.processes_per_node), *launcher]


def _address_of(host: str) -> str:
    """The address that SLURM knows a node under, which may differ from its name."""
    fields = _output_of(["scontrol", "--oneliner", "show", "node", host]).split()
    return next((field.removeprefix("NodeAddr=") for field in fields if field.startswith("NodeAddr=")), host)


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{' '.join(command)} failed; training on several nodes needs a SLURM job: {error}") from None

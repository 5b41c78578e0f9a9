"""Starting a training: one `accelerate launch` per node."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from omnitune.config import ExperimentOptions, require_processes
from omnitune.config.options import TrainOptions
from omnitune.console import plain_progress
from omnitune.training.processes import die_with_parent, lock

logger = logging.getLogger("omnitune")

WRAPPED_BLOCK = "OmniGen2TransformerBlock"  # FSDP shards each of these on its own


@dataclass(frozen=True)
class Topology:
    """Where processes run.

    Attributes:
        processes_per_node: training processes on each node; with GPUs, one for each.
        nodes: number of nodes.
        rank: number of this node, from 0.
        address: host name or address of node 0.
        port: port that node 0 listens on; 0 picks a free one (single node only).
        threads_per_process: CPU threads of each process.
    """

    processes_per_node: int
    nodes: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    threads_per_process: int = 1

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.processes_per_node * self.nodes


@dataclass(frozen=True)
class TrainingFiles:
    """What a training reads and writes.

    Attributes:
        config: options file.
        base: pipeline folder with VAE, text encoder and tokenizer.
        transformer: folder of the transformer to start from.
        index: prepared/{dataset}/shards/index.parquet.
        output: experiments/{experiment}.
    """

    config: Path
    base: Path
    transformer: Path
    index: Path
    output: Path

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [word for name, path in vars(self).items() for word in (f"--{name}", str(path))]


def launch_command(topology: Topology, train: TrainOptions, arguments: list[str]) -> list[str]:
    """The `accelerate launch` command of one node.

    Raises:
        ValueError: for several nodes without a fixed port.
    """
    if topology.nodes > 1 and topology.port == 0:
        raise ValueError("--master_port: 0 is not allowed with several nodes; give the same free port on each.")
    command = [sys.executable, "-m", "omnitune.training.accelerate_launch", "launch"]
    command += ["--num_processes", str(topology.world_size), "--num_machines", str(topology.nodes)]
    command += [
        "--machine_rank",
        str(topology.rank),
        "--mixed_precision",
        train.mixed_precision,
        "--dynamo_backend",
        "no",
    ]
    command += ["--num_cpu_threads_per_process", str(topology.threads_per_process)]
    command += ["--main_process_port", str(topology.port)]
    if topology.nodes > 1:
        command += ["--main_process_ip", topology.address, "--rdzv_backend", "static"]
    if topology.world_size > 1:
        command += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        command += ["--fsdp_transformer_layer_cls_to_wrap", WRAPPED_BLOCK]
        command += ["--fsdp_reshard_after_forward", str(train.reshard_after_forward).lower()]
        command += ["--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false"]
    return [*command, "--module", "omnitune.training.loop", *arguments]


def launch_environment(topology: Topology) -> dict[str, str]:
    """Environment of the launched processes."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    environment["OMP_NUM_THREADS"] = str(topology.threads_per_process)
    if not torch.accelerator.is_available():
        # accelerate would take DDP or lone processes on CPU; see parallel.build_accelerator.
        environment["ACCELERATE_TORCH_DEVICE"] = "cpu"
        environment.pop("ACCELERATE_USE_CPU", None)
    return environment


def launch(options: ExperimentOptions, files: TrainingFiles, topology: Topology) -> None:
    """Runs this node's part of a training and waits for it.

    Raises:
        ConfigError: if the batch sizes do not fit the number of processes.
        ValueError: if a file is missing, or the training failed; its own message stands above in the log then.
    """
    require_processes(options, topology.world_size, str(files.config))
    for path in (files.index, files.transformer, files.base):
        if not path.exists():
            raise ValueError(f"{path} is missing. `snakemake --cores 2 train` makes all that a training needs.")
    if topology.rank == 0:
        lock(files.output).close()  # refuse here, with one message; the training itself holds it from its start
    command = launch_command(topology, options.train, files.arguments())
    logger.info("starting %s", " ".join(command))
    code = _run(command, launch_environment(topology))
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
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ValueError(
            f"{files.config}: train.batch_size {options.train.batch_size}: the batch sizes ask for {processes} processes on a "
            f"node with {torch.cuda.device_count()} GPUs. Raise batch_size or gradient_accumulation_steps."
        )
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
    logger.info("starting %s", " ".join(command))
    code = _run(command, dict(os.environ))
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


def _run(command: list[str], environment: dict[str, str]) -> int:
    """Runs a command; its output goes to the log line by line, or straight to a terminal, where it may draw a bar."""
    output = subprocess.PIPE if plain_progress() else None
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509  (single-threaded)
    )
    try:
        for line in process.stdout or ():
            logger.info("%s", line.rstrip())
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise

"""Several processes of one module, started by `accelerate launch`; each ends with its launcher."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from omnitune.console import plain_progress

logger = logging.getLogger("omnitune")


@dataclass(frozen=True)
class Topology:
    """Where processes run.

    Attributes:
        processes_per_node: processes on each node; with GPUs, one for each.
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


def accelerate_command(
    topology: Topology, module: str, arguments: Sequence[str], options: Sequence[str] = (), mixed_precision: str = "no"
) -> list[str]:
    """The `accelerate launch` command of one node.

    Args:
        topology: where the processes run.
        module: what each of them runs, with `arguments`.
        options: further options of `accelerate launch`.
        mixed_precision: as accelerate names it.

    Raises:
        ValueError: for several nodes without a fixed port.
    """
    if topology.nodes > 1 and topology.port == 0:
        raise ValueError("--master_port: 0 is not allowed with several nodes; give the same free port on each.")
    command = [sys.executable, "-m", "omnitune.launcher", "launch"]
    command += ["--num_processes", str(topology.world_size), "--num_machines", str(topology.nodes)]
    command += ["--machine_rank", str(topology.rank), "--mixed_precision", mixed_precision, "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", str(topology.threads_per_process)]
    command += ["--main_process_port", str(topology.port)]
    if topology.nodes > 1:
        command += ["--main_process_ip", topology.address, "--rdzv_backend", "static"]
    return [*command, *options, "--module", module, *arguments]


def launch_environment(threads_per_process: int) -> dict[str, str]:
    """Environment of the launched processes."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    environment["OMP_NUM_THREADS"] = str(threads_per_process)
    if not torch.accelerator.is_available():
        # accelerate would take DDP or lone processes on CPU; see training/parallel.py.
        environment["ACCELERATE_TORCH_DEVICE"] = "cpu"
        environment.pop("ACCELERATE_USE_CPU", None)
    return environment


def require_gpus(processes: int, fix: str) -> None:
    """Raises ValueError, with a sentence on the fix, where there are GPUs, but not one for each of a node's processes."""
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise ValueError(f"{processes} processes are not allowed on a node with {gpus} GPUs: each takes one. {fix}")


def run(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a command; its output goes to the log line by line, or straight to a terminal, where it may draw a bar."""
    logger.info("starting %s", " ".join(command))
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


def die_with_parent() -> None:
    """Asks the kernel to kill this process when its launcher dies, so that no orphan goes on writing."""
    if os.name == "posix" and hasattr(signal, "SIGKILL"):
        try:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        except (OSError, AttributeError):  # not Linux: the launcher's own clean-up must do
            return


def launched_rank() -> int:
    """Number of this process among all, as the launcher set it."""
    return int(os.environ.get("RANK", "0"))


def main() -> None:
    """`accelerate launch`, without its own traceback: the process that failed has said why."""
    from accelerate.commands.accelerate_cli import main as accelerate
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        accelerate()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        sys.exit(f"process {rank} ended with exit code {failure.exitcode}")


if __name__ == "__main__":
    main()

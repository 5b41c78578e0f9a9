"""Several processes of one module, started by `accelerate launch`; each ends with its launcher.

How they are asked to stop before they are done: stopping.py.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import psutil

from omnitune.console import plain_progress
from omnitune.distributed.stopping import (
    FORWARDS_STOP,
    PEER_LOST,
    Stops,
    block_stop_signals,
    die_with_parent,
    send_on_to_children,
    sending_on,
)

logger = logging.getLogger("omnitune")

MISTAKE = 2  # exit code of a launched process and of its launcher: the user's, starting again would not help


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
    command = [sys.executable, "-m", "omnitune.distributed.processes", "launch"]
    command += ["--num_processes", str(topology.world_size), "--num_machines", str(topology.nodes)]
    command += ["--machine_rank", str(topology.rank), "--mixed_precision", mixed_precision, "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", str(topology.threads_per_process)]
    command += ["--main_process_port", str(topology.port)]
    if topology.nodes > 1:
        command += ["--main_process_ip", topology.address, "--rdzv_backend", "static"]
    return [*command, *options, "--module", module, *arguments]


def launch_environment(topology: Topology, forwards_stop: bool = False) -> dict[str, str]:
    """Environment of the launched processes.

    Args:
        topology: where they run.
        forwards_stop: the launcher sends STOP_SIGNALS on to its processes, which end by themselves, instead of ending.
    """
    environment = dict(os.environ, PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false")
    environment["OMP_NUM_THREADS"] = str(topology.threads_per_process)
    if forwards_stop:
        environment[FORWARDS_STOP] = "1"
    if topology.nodes > 1 and (interface := interface_towards(topology.address)):
        # gloo would take the interface of the host's own name, which often is the loopback.
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    return environment


def interface_towards(address: str) -> str | None:
    """Name of the network interface by which an address is reached; None where that cannot be found out."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((socket.gethostbyname(address), 9))  # sends nothing: it only picks the route
            own = probe.getsockname()[0]
    except OSError:
        return None
    names = [name for name, found in psutil.net_if_addrs().items() if own in {entry.address for entry in found}]
    return names[0] if names else None


def require_gpus(processes: int, fix: str) -> None:
    """Raises ValueError, with a sentence on the fix, where a node has GPUs, but not one for each process."""
    if processes == 1:
        return
    import torch  # two seconds, which one process need not wait for

    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise ValueError(f"{processes} processes are not allowed on a node with {gpus} GPUs: each takes one. {fix}")


def run(command: Sequence[str], environment: dict[str, str], stops: Stops | None = None) -> int:
    """Runs a command; its output goes to the log line by line, or straight to a terminal, where it may draw a bar.

    With `stops`, STOP_SIGNALS that arrive here are sent on to it, and noted there; without, they end this process, and
    it.
    """
    logger.info("starting %s", " ".join(command))
    output = subprocess.PIPE if plain_progress() else None
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        text=True,
        # This process has no other thread whose locks a fork could take along.
        preexec_fn=block_stop_signals if FORWARDS_STOP in environment else die_with_parent,  # noqa: PLW1509
    )
    try:
        with sending_on(process, stops) if stops else nullcontext():
            for line in process.stdout or ():
                logger.info("%s", line.rstrip())
            return process.wait()
    except BaseException:
        process.kill()  # SIGTERM may mean something else to it; what it has launched dies with it
        process.wait()
        raise


def launched_rank() -> int:
    """Number of this process among all, as the launcher set it."""
    return int(os.environ.get("RANK", "0"))


def is_first_of_node() -> bool:
    """Whether this process is the first of its node, which tells what concerns all."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def main() -> None:
    """`accelerate launch`, without its own traceback: the process that failed has said why."""
    import torch
    from accelerate.commands.accelerate_cli import main as accelerate
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if not torch.accelerator.is_available():
        # accelerate would take DDP or lone processes on CPU; see `build_accelerator` in parallel.py.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        os.environ.pop("ACCELERATE_USE_CPU", None)
    if FORWARDS_STOP in os.environ:
        threading.Thread(target=send_on_to_children, daemon=True).start()
    try:
        accelerate()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        codes = [failure.exitcode for failure in error.failures.values()]
        print(f"process {rank} ended with exit code {failure.exitcode}", file=sys.stderr)
        sys.exit(MISTAKE if MISTAKE in codes else PEER_LOST)
    except subprocess.CalledProcessError as error:  # a single process
        print(f"the process ended with exit code {error.returncode}", file=sys.stderr)
        sys.exit(MISTAKE if error.returncode == MISTAKE else PEER_LOST)


if __name__ == "__main__":
    main()

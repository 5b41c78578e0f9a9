"""A whole training from inside a job: here, or with one launcher on each node that SLURM has given.

Where its time is up before it is done, the job goes back into the queue.
"""

import logging
import os
import shutil
import subprocess
import sys
import time

from omnitune.checkpoints.states import list_checkpoints
from omnitune.config import ExperimentOptions, require_processes
from omnitune.console import INTERRUPTED, Interrupted
from omnitune.distributed.processes import Topology, run
from omnitune.distributed.stopping import Stops
from omnitune.launching.launch import launch, saved_and_stopped
from omnitune.training.inputs import TrainingFiles

logger = logging.getLogger("omnitune")

REQUEUE_SECONDS = 300  # within which SLURM ends a job that it has put back into the queue


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
    hosts = slurm_hosts()
    if nodes == 1 and len(hosts) != 1:
        launch(options, files, topology)
        return
    if not hosts:
        raise ValueError(
            f"nodes: {nodes} is not allowed outside of SLURM; take --workflow-profile workflow/profiles/slurm, or "
            "start `omnitune train` on each node (see its --help)."
        )
    # On a single node as well: SLURM signals the steps of an expiring job (sbatch --signal), not what else runs in it.
    command, saved = srun_command(files, topology, hosts), list_checkpoints(files.output)
    code = run(command, dict(os.environ), Stops())
    if code == INTERRUPTED or (code == 0 and not (files.output / "train.json").is_file()):
        if max(list_checkpoints(files.output), default=0) > max(saved, default=0):
            requeue_job()
        raise saved_and_stopped(options)
    if code:
        raise ValueError(
            f"training {options.name} on {nodes} node(s) failed with exit code {code}; see the messages above."
        )


def launch_task(options: ExperimentOptions, files: TrainingFiles, topology: Topology) -> None:
    """Runs the part of one node, started by srun.

    Ends well where it was asked to stop: for another exit code srun would kill the other nodes, which still save. The
    job sees that there is no result.
    """
    try:
        launch(options, files, topology)
    except Interrupted as error:
        logger.warning("%s", error)


def requeue_job() -> None:
    """Puts this job back into SLURM's queue under its own number, which ends it; no try of Snakemake's is used up.

    Returns where SLURM does not do that: jobs that are cancelled, and sites that do not let jobs queue again.
    """
    number = os.environ["SLURM_JOB_ID"]
    try:
        if _output_of(["squeue", "--noheader", "--job", number, "--format", "%T"]) != "RUNNING":
            return
        logger.info("training goes on in job %s, which goes back into the queue", number)
        _output_of(["scontrol", "requeue", number])
    except ValueError as error:
        logger.warning("%s", error)
        return
    time.sleep(REQUEUE_SECONDS)


def slurm_hosts() -> list[str]:
    """The nodes of the SLURM job that this process runs in; none outside of one."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None or shutil.which("squeue") is None:
        return []
    names = _output_of(["squeue", "--noheader", "--job", job_id, "--format", "%N"])
    return _output_of(["scontrol", "show", "hostnames", names]).splitlines()


def srun_command(files: TrainingFiles, topology: Topology, hosts: list[str]) -> list[str]:
    """One launcher on each node of this SLURM job; each reads its own number from SLURM_NODEID."""
    if len(hosts) != topology.nodes:
        raise ValueError(
            f"SLURM gave {len(hosts)} node(s) ({', '.join(hosts)}) to a training on {topology.nodes}. Say how many "
            f"with --config nodes={topology.nodes}, not with --set-resources."
        )
    address = slurm_address(hosts[0])
    nodes = str(topology.nodes)
    launcher = [sys.executable, "-m", "omnitune.cli", "train", "--slurm", *files.arguments()]
    launcher += ["--num_processes", str(topology.world_size), "--world_size", nodes]
    launcher += ["--num_threads", str(topology.threads_per_process)]
    launcher += ["--master_addr", address, "--master_port", str(job_port())]
    step = ["srun", "--overlap", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    return [*step, "--cpus-per-task", str(topology.threads_per_process * topology.processes_per_node), *launcher]


def job_port() -> int:
    """Two jobs may share a node, so the port comes from the number of this job."""
    return 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000


def slurm_address(host: str) -> str:
    """The address that SLURM knows a node under, which may differ from its name."""
    fields = _output_of(["scontrol", "--oneliner", "show", "node", host]).split()
    return next((field.removeprefix("NodeAddr=") for field in fields if field.startswith("NodeAddr=")), host)


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{' '.join(command)} failed, which asks SLURM about this job: {error}") from None

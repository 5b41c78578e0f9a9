"""Starting a training: one `accelerate launch` per node."""

import logging
import os
import shutil
import subprocess
import sys

from omnitune.config import ExperimentOptions, require_processes
from omnitune.config.training import TrainOptions
from omnitune.console import INTERRUPTED, Interrupted
from omnitune.launcher import (
    MISTAKE,
    Stops,
    Topology,
    accelerate_command,
    launch_environment,
    require_gpus,
    run,
)
from omnitune.training.files import TrainingFiles, lock_experiment
from omnitune.training.identity import identity_of, require_same
from omnitune.training.layout import Layout, choose_layout

logger = logging.getLogger("omnitune")

WRAPPED_BLOCK = "OmniGen2TransformerBlock"  # FSDP shards each of these on its own


def launch_command(topology: Topology, layout: Layout, train: TrainOptions, arguments: list[str]) -> list[str]:
    """The `accelerate launch` command of one node; raises ValueError for several nodes without a fixed port."""
    sharing: list[str] = []
    if layout.strategy == "ddp":
        sharing = ["--multi_gpu"]
    elif layout.strategy != "single":
        sharing += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        sharing += ["--fsdp_transformer_layer_cls_to_wrap", WRAPPED_BLOCK]
        sharing += ["--fsdp_reshard_after_forward", str(train.reshard_after_forward).lower()]
        sharing += ["--fsdp_offload_params", str(train.cpu_offload).lower()]  # brings gloo for what is in CPU memory
        sharing += ["--fsdp_sync_module_states", "false", "--fsdp_cpu_ram_efficient_loading", "false"]
    arguments = [*arguments, "--strategy", layout.strategy, "--strategy_reason", layout.reason]
    arguments += ["--world_size", str(layout.world_size), "--shard_size", str(layout.shard_size)]
    return accelerate_command(topology, "omnitune.training.loop", arguments, sharing)


def launch(options: ExperimentOptions, files: TrainingFiles, topology: Topology) -> None:
    """Runs this node's part of a training and waits for it; starts it again where its processes died.

    Raises:
        ConfigError: if the batch sizes do not fit the number of processes.
        ValueError: if a file is missing, or the training failed; its own message stands above in the log then.
        Interrupted: if it was asked to stop and has saved.
    """
    require_processes(options, topology.world_size, str(files.config))
    require_gpus(topology.processes_per_node, f"Raise batch_size or gradient_accumulation_steps in {files.config}.")
    encoded = [files.encoded] if options.data.encode else []
    for path in (files.index, files.transformer, files.base, *encoded):
        if not path.exists():
            raise ValueError(f"{path} is missing. `snakemake --cores 2 train` makes all that a training needs.")
    if topology.rank == 0:  # refuse here, with one message; the training itself holds it from its start
        lock_experiment(files.output).close()
        identity = identity_of(options, files.base, files.transformer, files.index)
        require_same(options, identity, files.output, str(files.config))
    layout = choose_layout(options, topology, files)
    command = launch_command(topology, layout, options.train, files.arguments())
    _run_with_restarts(command, options, topology)
    if not (files.output / "train.json").is_file():
        raise Interrupted(f"training {options.name} was asked to stop and has saved; start it again to go on.")


def _run_with_restarts(command: list[str], options: ExperimentOptions, topology: Topology) -> None:
    environment, stops = launch_environment(topology, forwards_stop=True), Stops()
    for attempt in range(options.train.max_restarts + 1):
        code = run(command, environment, stops)
        if code == 0:
            return
        if stops.received and code != MISTAKE:
            raise Interrupted(
                f"training {options.name} was asked to stop and ended without saving (exit code {code}); start it again to "
                "go on from its newest checkpoint."
            )
        if code == MISTAKE or attempt == options.train.max_restarts:
            raise ValueError(f"training {options.name} failed with exit code {code}; its messages stand above.")
        left = options.train.max_restarts - attempt - 1
        logger.warning("processes of the training died; it goes on from its newest checkpoint (%d restarts left)", left)


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
            f"nodes: {nodes} is not allowed outside of SLURM; take --workflow-profile workflow/profiles/slurm, or start "
            "`omnitune train` on each node (see its --help)."
        )
    # On a single node as well: SLURM signals the steps of an expiring job (sbatch --signal), not what else runs in it.
    command = srun_command(files, topology, hosts)
    code = run(command, dict(os.environ), Stops())
    if code == INTERRUPTED:
        raise Interrupted(f"training {options.name} was asked to stop and has saved; start it again to go on.")
    if code:
        raise ValueError(
            f"training {options.name} on {nodes} node(s) failed with exit code {code}; see the messages above."
        )


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
            f"SLURM gave {len(hosts)} node(s) ({', '.join(hosts)}) to a training on {topology.nodes}. Set both resources: "
            f"--set-resources train_experiment:nodes={topology.nodes} train_experiment:tasks={topology.nodes}"
        )
    address = _address_of(hosts[0])
    nodes = str(topology.nodes)
    launcher = [sys.executable, "-m", "omnitune.cli", "train", "--slurm", *files.arguments()]
    launcher += ["--num_processes", str(topology.world_size), "--world_size", nodes]
    launcher += ["--num_threads", str(topology.threads_per_process)]
    # Two jobs may share a node, so the port comes from the job's number.
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    launcher += ["--master_addr", address, "--master_port", str(port)]
    step = ["srun", "--overlap", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1", "--kill-on-bad-exit=1"]
    return [*step, "--cpus-per-task", str(topology.threads_per_process * topology.processes_per_node), *launcher]


def _address_of(host: str) -> str:
    """The address that SLURM knows a node under, which may differ from its name."""
    fields = _output_of(["scontrol", "--oneliner", "show", "node", host]).split()
    return next((field.removeprefix("NodeAddr=") for field in fields if field.startswith("NodeAddr=")), host)


def _output_of(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{' '.join(command)} failed, by which a job asks SLURM for its nodes: {error}") from None

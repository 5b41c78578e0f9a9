"""Starting a training: one `accelerate launch` per node. How it is asked to stop: distributed/stopping.py."""

import logging

from omnitune.checkpoints.identity import identity_of, require_same
from omnitune.config import ExperimentOptions, require_processes
from omnitune.config.experiment.training import TrainOptions
from omnitune.console import Interrupted
from omnitune.distributed.layout import Layout
from omnitune.distributed.processes import (
    MISTAKE,
    Topology,
    accelerate_command,
    launch_environment,
    require_gpus,
    run,
)
from omnitune.distributed.stopping import Stops
from omnitune.launching.strategy import choose_layout
from omnitune.training.inputs import TrainingFiles, layout_arguments, lock_experiment

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
    arguments = [*arguments, *layout_arguments(layout)]
    return accelerate_command(topology, "omnitune.training", arguments, sharing)


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
        raise saved_and_stopped(options)


def saved_and_stopped(options: ExperimentOptions) -> Interrupted:
    """For a training that was asked to stop and has done so."""
    return Interrupted(f"training {options.name} was asked to stop and has saved; start it again to go on.")


def _run_with_restarts(command: list[str], options: ExperimentOptions, topology: Topology) -> None:
    """Runs the launcher until it ends well, is stopped, or has died more often than train.max_restarts."""
    environment, stops = launch_environment(topology, forwards_stop=True), Stops()
    for attempt in range(options.train.max_restarts + 1):
        code = run(command, environment, stops)
        if code == 0:
            return
        if stops.received and code != MISTAKE:
            raise Interrupted(
                f"training {options.name} was asked to stop and ended without saving (exit code {code}); start it "
                "again to go on from its newest checkpoint."
            )
        if code == MISTAKE or attempt == options.train.max_restarts:
            raise ValueError(f"training {options.name} failed with exit code {code}; its messages stand above.")
        left = options.train.max_restarts - attempt - 1
        logger.warning("processes of the training died; it goes on from its newest checkpoint (%d restarts left)", left)

"""Loads the config, and shares what all rules use."""

import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

# Jobs import the package from here, whichever environment they run in.
RULES = workflow.current_basedir.get_path_or_uri(secret_free=True)
PACKAGE_ROOT = str(Path(RULES).parent / "workflow")
sys.path.insert(0, PACKAGE_ROOT)
PYTHON_PATHS = [PACKAGE_ROOT, *os.getenv("PYTHONPATH", "").split(os.pathsep)]
os.environ.update(
    PYTHONPATH=os.pathsep.join(filter(None, dict.fromkeys(PYTHON_PATHS))),
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

from omnitune import paths, targets
from omnitune.config import Benchmark, ExperimentOptions
from omnitune.config.affects import key_line, key_params, keys_affecting
from omnitune.config.data import DataOptions
from omnitune.config.experiment.model import ModelOptions
from omnitune.config.yaml_file import read_yaml
from omnitune.distributed.gpus import shared_gpus
from omnitune.evaluation.model_files import judge_folders
from omnitune.evaluation.prompts import prompt_images, prompts_hash
from omnitune.io.storage import is_url, version_of
from omnitune.io.url_limits import fetching
from omnitune.named_files import read_named_files
from omnitune.paths import EvaluatedStep
from omnitune.planning.host import (
    host_memory_mb,
    training_memory_mb,
    training_minutes,
    training_threads,
)
from omnitune.project import Project

# Executors of clusters have a number of jobs (nodes) in place of cores.
ON_CLUSTER = workflow.resource_settings.nodes is not None or workflow.remote_exec

try:
    for file in workflow.configfiles:
        read_yaml(Path(file))  # of a key that stands twice, Snakemake takes the last
    PROJECT = Project.load(config)
    if ON_CLUSTER:
        PROJECT.check_cluster()
    if workflow.is_main_process:
        read_named_files(PROJECT)
except (ValueError, OSError) as error:  # ConfigError among them; a disk that fails
    raise WorkflowError(str(error))


# Jobs of this machine share its GPUs: Snakemake counts them, and each job takes its own (reserved_gpus). On a cluster a
# job has what its scheduler gives.
GPUS = shared_gpus(not ON_CLUSTER)
if GPUS and "gpus_per_node" not in workflow.global_resources:
    workflow.register_resource("gpus_per_node", len(GPUS))


def one_of(names):
    return "|".join(map(re.escape, names)) or "none"


BASELINES = {
    re.escape(f"{paths.BASELINE}{name}")
    for benchmark in PROJECT.benchmarks.values()
    for name in benchmark.baselines
}


JUDGES = [
    judge for benchmark in PROJECT.benchmarks.values() for judge in benchmark.judges
]


# Files of experiments and data sets that are not in the config are files like others, which no rule makes.
wildcard_constraints:
    dataset=one_of(PROJECT.sources),
    source=one_of(name for found in PROJECT.sources.values() for name in found),
    shard=paths.SHARD_NUMBER,
    group=r"\d{4}\d*",
    model=one_of(PROJECT.models),
    experiment=one_of(PROJECT.experiments),
    step="|".join([r"0|[1-9]\d*(-ema)?(-x\d+(\.\d+)?)?", *sorted(BASELINES)]),
    benchmark=one_of(PROJECT.benchmarks),
    part=r"0|[1-9]\d*",
    weights=paths.WEIGHTS_NAME,
    comparison=one_of(PROJECT.comparisons),


def is_run():
    """Whether jobs will be run from here: no dry run, report or lint, and no job's own process."""
    return (
        workflow.is_main_process
        and workflow.execution_settings is not None
        and not workflow.dryrun
    )


def is_forced(name, file):
    """Whether a job is to run whatever the reasons, by its rule or its output."""
    settings = workflow.dag_settings
    if settings is None or not workflow.is_main_process:
        return False
    asked = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
    return settings.forceall or not {name, file}.isdisjoint(map(str, asked))


def refuse(*messages):
    """Ends the run with sentences; an exception of an input function would be shown with its traceback."""
    logger.error("\n".join(messages))
    raise SystemExit(1)

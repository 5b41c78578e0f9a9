"""Loads the config, and lets jobs wait for the phases before them. What needs what: omnitune.project."""

import functools
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import IncompleteCheckpointException, WorkflowError
from snakemake.io import checkpoint_target
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

from omnitune import paths
from omnitune.config import Benchmark, ExperimentOptions
from omnitune.config.affects import key_line, key_params
from omnitune.config.options import DataOptions, ModelOptions
from omnitune.config.yaml_file import read_yaml
from omnitune.distributed.gpus import shared_gpus
from omnitune.evaluation.prompts import prompt_images, prompts_hash
from omnitune.paths import EvaluatedStep
from omnitune.planning.host import host_memory_mb
from omnitune.project import Project
from omnitune.refusals import refused_trainings, stretched_schedules
from omnitune.io.url_limits import fetching
from omnitune.io.storage import is_url, version_of
from omnitune.survey import lost_files

try:
    for file in workflow.configfiles:
        read_yaml(Path(file))  # of a key that stands twice, Snakemake takes the last
    PROJECT = Project.load(config)
    if workflow.is_main_process:
        PROJECT.read_files()
except ValueError as error:  # ConfigError among them
    raise WorkflowError(str(error))


# Jobs of this machine share its GPUs: Snakemake counts them, and each job takes its own (reserved_gpus). Executors of
# clusters have a number of jobs (nodes), and what they run is in GPUs what their scheduler gives.
GPUS = shared_gpus(
    workflow.resource_settings.nodes is None and not workflow.remote_exec
)
if GPUS and "gpus_per_node" not in workflow.global_resources:
    workflow.register_resource("gpus_per_node", len(GPUS))


def one_of(names):
    return "|".join(map(re.escape, names)) or "none"


# Files of experiments and data sets that are not in the config are files like others, which no rule makes.
wildcard_constraints:
    dataset=one_of(PROJECT.sources),
    source=one_of(name for found in PROJECT.sources.values() for name in found),
    shard=paths.SHARD_NUMBER,
    group=r"\d{4}\d*",
    model=one_of(PROJECT.models),
    experiment=one_of(PROJECT.experiments),
    step=r"0|[1-9]\d*(-ema)?",
    benchmark=one_of(PROJECT.benchmarks),
    part=r"0|[1-9]\d*",
    weights=paths.WEIGHTS_NAME,
    sweep=one_of(filter(None, [PROJECT.swept])),


CLOSED = set()  # phases, which stay closed


def behind(*chains):
    """The output of the last phase of each chain of phases, once all of them are closed; until then a job waits.

    It waits for the first of a chain that is open: so the graph grows phase by phase, and no job is judged before all
    that stands before it is settled. Where nothing will be run, as in a dry run, there is nothing to wait for: the
    names are known.
    """
    look_ahead(chains)
    if is_run():
        wait_for([list(filter(is_open, chain)) for chain in chains])
    return [outputs_of(chain[-1]) for chain in chains if chain]


def reading(*chains):
    """The same, for what reads the content of these outputs: a dry run, too, does not know it before."""
    outputs = behind(*chains)
    wait_for([chain[-1:] for chain in chains if is_open(chain[-1])])
    return outputs


def wait_for(open_chains):
    """Lets the job come back once the first phases of these are closed."""
    firsts = [phases[0] for phases in open_chains if phases]
    if firsts and is_run() and workflow.touch:
        refuse_touching(firsts)
    if firsts:
        first, *others = [open_file(phase) for phase in firsts]
        # Of a parameter, Snakemake only waits for one file.
        targets = [first, *others] if others else first
        raise IncompleteCheckpointException(rule_of(firsts[0]), targets)


def rule_of(phase):
    return getattr(checkpoints, phase.rule).rule


def outputs_of(phase):
    return rule_of(phase).expand_output(dict(phase.wildcards))[0]


def is_open(phase):
    if phase not in CLOSED:
        try:
            getattr(checkpoints, phase.rule).get(**dict(phase.wildcards))
        except IncompleteCheckpointException:
            return True
        CLOSED.add(phase)
    return False


def open_file(phase):
    """What to wait for: a lost output, which lets the phase run again, or else any."""
    outputs = outputs_of(phase)
    lost = [path for path in outputs if not os.path.exists(path)]
    return checkpoint_target((lost or outputs)[0])


def is_run():
    """Whether jobs will be run from here: no dry run, report or lint, and no job's own process."""
    return (
        workflow.is_main_process
        and workflow.execution_settings is not None
        and not workflow.dryrun
    )


def refuse_touching(phases):
    """Ends `snakemake --touch`, which makes nothing, at what is not there: nothing behind it can be judged."""
    for path in [path for phase in phases for path in outputs_of(phase)]:
        if not os.path.exists(path):
            refuse(f"--touch: {path} is not there yet; `snakemake --cores 2` makes it.")


def is_forced(name, file):
    """Whether a job is to run whatever the reasons, by its rule or its output."""
    settings = workflow.dag_settings
    if settings is None or not workflow.is_main_process:
        return False
    asked = {*settings.forcerun, *(settings.targets if settings.forcetargets else ())}
    return settings.forceall or not {name, file}.isdisjoint(map(str, asked))


@functools.cache
def survey():
    """Before there is any job: says which files are lost that Snakemake does not know of, and which learning rates change.

    Gives what is refused.
    """
    refused = refused_trainings(PROJECT)
    for line in [*lost_files(PROJECT), *stretched_schedules(PROJECT)]:
        logger.warning(line)
    return refused


def look_ahead(chains):
    """Refuses a changed training before anything of this run is done."""
    if not workflow.is_main_process or workflow.execution_settings is None:
        return
    phases = [phase for chain in chains for phase in chain]
    asked = {
        phase["experiment"] for phase in phases if phase.rule == "prepare_training"
    }
    if asked & survey().keys():
        refuse(*survey().values())


def refuse(*messages):
    """Ends the run with sentences; an exception of an input function would be shown with its traceback."""
    logger.error("\n".join(messages))
    raise SystemExit(1)

"""Lets jobs wait for the phases before them, and looks ahead before any job. What needs what: omnitune.project."""

import functools

from snakemake.exceptions import IncompleteCheckpointException
from snakemake.io import checkpoint_target

from omnitune.refusals import refused_trainings, stretched_schedules
from omnitune.survey import lost_files

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


def refuse_touching(phases):
    """Ends `snakemake --touch`, which makes nothing, at what is not there: nothing behind it can be judged."""
    for path in [path for phase in phases for path in outputs_of(phase)]:
        if not os.path.exists(path):
            refuse(f"--touch: {path} is not there yet; `snakemake --cores 2` makes it.")


@functools.cache
def survey():
    """Before any job: says which files are lost that Snakemake does not know of, and which learning rates change.

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

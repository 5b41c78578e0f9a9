"""Commands about experiments and the project as a whole: `status`, `doctor`, `rename`, `remove`, `schema`."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from omnitune.cli.options import AsJson, WorkflowConfig, option
from omnitune.config.yaml_file import read_yaml
from omnitune.project import Project


def status(
    experiments: Annotated[list[str] | None, typer.Argument(help="Names of experiments. Default: all.")] = None,
    config: WorkflowConfig = Path("config/config.yaml"),
    follow: Annotated[bool, typer.Option("--follow", help="Keep the table fresh, until Ctrl-C.")] = False,
    interval: Annotated[float, option("interval", "With --follow: seconds between two looks.", min=0.5)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say how far each experiment is: stage, step, loss, samples per second, time left, jobs that wait or have failed.

    Reads the files that are there, and asks squeue where SLURM runs the jobs.
    """
    from rich.console import Console

    from omnitune.status.collect import collect_status
    from omnitune.status.show import follow as keep_fresh
    from omnitune.status.show import status_json, status_table

    if follow and as_json:
        raise ValueError("--follow and --json exclude each other; ask for JSON again and again instead.")
    project = Project.load(read_yaml(config), str(config))
    if follow:
        keep_fresh(lambda: collect_status(project, experiments or ()), interval)
    elif as_json:
        typer.echo(status_json(collect_status(project, experiments or ())))
    else:
        Console().print(status_table(collect_status(project, experiments or ())))


def doctor(
    config: WorkflowConfig = Path("config/config.yaml"),
    site: Annotated[
        Path | None,
        option("site", "What the cluster has. Default: workflow/profiles/slurm/site.yaml, where there is SLURM."),
    ] = None,
) -> None:
    """Say what is wrong here before a job waits for hours; exit code 1 where something is.

    Looks at packages, GPUs, disk, file system and config, at SLURM's partitions and limits on a login node, and inside
    of an allocation (`salloc --nodes=2 omnitune doctor`) at whether its nodes share files and reach each other.
    """
    from omnitune.doctor.check import check_all

    own = Path("workflow/profiles/slurm/site.yaml")
    used = site or (own if own.is_file() and shutil.which("sinfo") else None)
    problems = 0
    for found in check_all(config, used):
        problems += found.level == "problem"
        typer.echo(f"{found.level:<8} {found.about}: {found.text}")
    if problems:
        raise ValueError(f"{problems} problem{'s'[: problems > 1]} found.")


def rename(
    old: Annotated[str, typer.Argument(help="Name of an experiment in experiments/.")],
    new: Annotated[str, typer.Argument(help="Another name.")],
    config: WorkflowConfig = Path("config/config.yaml"),
) -> None:
    """Rename an experiment with all that it has made: nothing of it is made again but its report.

    Changes its `name` in the options file as well, where the workflow's config names that.
    """
    from omnitune.upkeep import rename_experiment

    rename_experiment(Project.load(read_yaml(config), str(config)), old, new)


def remove(
    name: Annotated[str, typer.Argument(help="Name of an experiment in experiments/.")],
    config: WorkflowConfig = Path("config/config.yaml"),
) -> None:
    """Remove an experiment with all that it has made: checkpoints, weights, images, scores, reports."""
    from omnitune.upkeep import remove_experiment

    remove_experiment(Project.load(read_yaml(config), str(config)), name)


def schema() -> None:
    """Write workflow/schemas/*.schema.json and config/README.md anew from the config models."""
    from omnitune.config.reference import write_reference

    write_reference(Path.cwd())

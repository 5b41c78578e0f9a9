"""What all experiments of a project lead to: the phases and files that the workflow's targets wait for."""

from collections.abc import Iterable

from omnitune.paths import OFFICIAL
from omnitune.project import Phases, Project


def drawn(project: Project) -> list[Phases]:
    """The demo's data, where something is read from it."""
    files = [file for sources in project.sources.values() for source in sources.values() for file in source.files]
    prompts = [benchmark.prompts for benchmark in project.benchmarks.values()]
    heldout = [options.val.data_path for options in project.experiments.values() if options.val.data_path]
    found = project.drawn([*files, *prompts, *heldout])
    return [found] if found else []


def encoded(project: Project) -> list[tuple[str, str]]:
    """Data set and base model of each encoding that is trained on, sorted."""
    return sorted(
        {
            (options.data.dataset, project.starts[name].model)
            for name, options in project.experiments.items()
            if options.data.encode
        }
    )


def converted(project: Project) -> list[Phases]:
    """Each checkpoint or average that is evaluated, in each of its formats."""
    return [
        project.converted(name, step, format=format)
        for name in project.experiments
        for step, format in project.exports(name)
    ]


def scored(project: Project, experiments: Iterable[str]) -> list[Phases]:
    """Each evaluation of these experiments."""
    return [project.scored(*found) for found in project.evaluated(experiments)]


def exported(project: Project, experiments: Iterable[str]) -> list[str]:
    """The official layout of each evaluation of these experiments, for benchmarks that ask for it."""
    return [
        OFFICIAL.format(experiment=owner, step=step, benchmark=name)
        for owner, step, name in project.evaluated(experiments)
        if project.benchmarks[name].export
    ]

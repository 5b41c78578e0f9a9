"""Which files each stage of an experiment comes to: one for each job, in the order in which the stages run."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from omnitune.io.kept import Ended, read_kept
from omnitune.paths import (
    BASE_MANIFEST,
    ENCODED_GROUP,
    INDEX,
    PART,
    REPORT,
    SAMPLES,
    SCORES,
    SHARD_INDEX,
    SHARDS,
    SUMMARY,
    TRAINED,
    VALIDATED_SOURCE,
    VALIDATION,
    group_name,
)
from omnitune.project import Project


class Stage(NamedTuple):
    """A stage, and the files that its jobs make; of what is not validated yet, shards are not known."""

    name: str
    files: tuple[str, ...]


class Files:
    """What is there. A folder is listed once: a shared file system takes its time for each question."""

    def __init__(self) -> None:
        self._names = cache(_names)

    def has(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        folder, _, name = path.rpartition("/")
        return name in self._names(folder)

    def missing(self, stage: Stage) -> list[str]:
        """The files of a stage that are not there."""
        return [path for path in stage.files if not self.has(path)]


def _names(folder: str) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder or "."))  # noqa: PTH208  (names alone, in one call)
    except OSError:
        return frozenset()


class Expected:
    """The stages of a project's experiments; what several of them share is looked up once."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._shared = cache(self._data_stages)
        self._groups = cache(project.groups)

    def stages(self, name: str) -> list[Stage]:
        """The stages of an experiment of the config; ValueError where a file that the config names is wrong."""
        options, model = self.project.experiments[name], self.project.starts[name].model
        return [
            *self._shared(options.data.dataset, model, options.data.encode),
            Stage("train", (TRAINED.format(experiment=name),)),
            Stage("convert", tuple(self.project.conversion(name, *export) for export in self.project.exports(name))),
            Stage("evaluate", tuple(self._evaluations(name))),
            Stage("report", (REPORT.format(experiment=name),)),
        ]

    def _data_stages(self, dataset: str, model: str, encode: bool) -> list[Stage]:
        sources = [
            f"{VALIDATED_SOURCE.format(dataset=dataset, source=source)}/{SAMPLES}"
            for source in self.project.sources[dataset]
        ]
        validated = [*sources, f"{VALIDATION.format(dataset=dataset)}/{SUMMARY}"]
        groups = self._groups(dataset)
        shards = [
            f"{SHARDS.format(dataset=dataset)}/{shard}{Path(SHARD_INDEX).suffix}"
            for found in groups.values()
            for shard in found
        ]
        encoded = [
            ENCODED_GROUP.format(dataset=dataset, model=model, source=source, group=group_name(group))
            for source, group in groups
        ]
        return [
            Stage("base", (BASE_MANIFEST.format(model=model),)),
            Stage("validate", tuple(validated)),
            Stage("shard", (*shards, INDEX.format(dataset=dataset))),
            *([Stage("encode", tuple(encoded))] if encode else []),
        ]

    def _evaluations(self, name: str) -> Iterator[str]:
        """Parts and scores."""
        for owner, step, benchmark in self.project.evaluated([name]):
            keys = {"experiment": owner, "step": step, "benchmark": benchmark}
            parts = range(self.project.benchmarks[benchmark].parts)
            yield from (PART.format(part=part, **keys) for part in parts)
            yield SCORES.format(**keys)


def trained_steps(experiment: str) -> int | None:
    """The last step of a training that has ended, from its train.json; None without one.

    Raises ValueError for one that is damaged.
    """
    path = Path(TRAINED.format(experiment=experiment))
    return read_kept(path, Ended)["final_step"] if path.is_file() else None

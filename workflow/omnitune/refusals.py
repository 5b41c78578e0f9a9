"""Trainings that a run would refuse, or go on with otherwise, looked up before there is any job.

From the config and the user's own files alone.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from omnitune.checkpoints.identity import changes, refusal, stretched
from omnitune.checkpoints.states import newest_state
from omnitune.errors import ConfigError
from omnitune.io.files import sha256_of
from omnitune.io.jsonl import count_rows
from omnitune.io.kept import read_kept
from omnitune.io.storage import is_url
from omnitune.paths import EXPERIMENT, INDEX, SUMMARY, VALIDATED_SOURCE, adapter_file
from omnitune.project import Project
from omnitune.sharding.digests import read_sources


def refused_trainings(project: Project) -> dict[str, str]:
    """The message on each experiment whose training would not go on from its checkpoints, by name.

    A training whose options, data or starting weights have changed is refused, unless resume_from_checkpoint: null lets
    it start over. Whether prepared data or weights have changed is known only once the workflow has brought them up to
    date; the rule prepare_training refuses then.
    """
    refused = {}
    for name, options in project.experiments.items():
        try:
            differing = changed(project, name)
        except ValueError as error:  # a damaged state: no training goes on from it
            refused[name] = str(error)
            continue
        if differing and options.resume_from_checkpoint is not None:
            folder = Path(EXPERIMENT.format(experiment=name))
            refused[name] = refusal(options, differing, folder, str(project.options_files[name]))
    return refused


def stretched_schedules(project: Project) -> list[str]:
    """A sentence on each training that goes on with another number of steps under a schedule that this changes."""
    found = []
    for name, options in project.experiments.items():
        with suppress(ValueError):  # a damaged state, which is refused
            another = stretched(options, Path(EXPERIMENT.format(experiment=name)))
            if another and not changed(project, name):
                found.append(another)
    return found


def changed(project: Project, experiment: str) -> list[str]:
    """In what an experiment differs from what its checkpoints were trained under, a line each; nothing without any."""
    state = newest_state(Path(EXPERIMENT.format(experiment=experiment)))
    if state is None:
        return []
    options, trained = project.experiments[experiment], state.identity
    sources = project.sources[options.data.dataset]
    asked: dict[str, Any] = {"options": options.identity}
    if "data" in trained:
        known = {name: trained["data"].get(name, {}) for name in sources}
        asked["data"] = {name: {**known[name], "ratio": source.ratio} for name, source in sources.items()}
    adapter = adapter_file(options.train.lora_path) if options.train.lora_path else None
    if adapter and not options.adapter_upstream and adapter.is_file():
        asked["starting_adapter"] = sha256_of(adapter)
    lines = changes(trained, asked)
    return [*lines, *_changed_rows(project, options.data.dataset, trained), *_starting_over(project, experiment)]


def _changed_rows(project: Project, dataset: str, trained: dict[str, Any]) -> Iterator[str]:
    """Sources whose files have other rows now than when they were validated for what was trained."""
    index = Path(INDEX.format(dataset=dataset))
    try:
        indexed = read_sources(index)
    except ConfigError:  # lost or of an older version: it is written again
        return
    for name, source in project.sources[dataset].items():
        path = Path(VALIDATED_SOURCE.format(dataset=dataset, source=name)) / SUMMARY
        files = [Path(file) for file in source.files if not is_url(file)]
        facts = trained.get("data", {}).get(name)
        as_trained = facts is not None and facts["sha256"] == indexed.get(name, {}).get("sha256")
        if not as_trained or not path.is_file() or len(files) < len(source.files):
            continue
        if any(file.is_file() and file.stat().st_mtime_ns > path.stat().st_mtime_ns for file in files):
            try:
                before = read_kept(path)["rows"]
            except (KeyError, TypeError, ValueError):  # damaged; it is written again, as the file is newer
                continue
            now = sum(count_rows(file) for file in files if file.is_file())
            if before != now:
                yield f"{name}: {before} -> {now} rows"


def _starting_over(project: Project, experiment: str) -> Iterator[str]:
    """Experiments that this one starts from, and that are trained anew."""
    starts = (project.starts[experiment].upstream, project.experiments[experiment].adapter_upstream)
    for name, _ in filter(None, starts):
        if name in project.experiments and changed(project, name):
            yield f"the weights that it starts from: experiments/{name} is trained anew"

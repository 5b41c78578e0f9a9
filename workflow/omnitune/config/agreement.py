"""What files of the config may not say together: names that two have, and folders that two would fill otherwise."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnitune.config.affects import keys_affecting
from omnitune.config.base import load_config
from omnitune.config.benchmarks.benchmark import Benchmark
from omnitune.config.data import DataOptions
from omnitune.config.experiment.options import ExperimentOptions
from omnitune.config.experiment.starts import StartingWeights
from omnitune.config.workflow import Cluster
from omnitune.errors import ConfigError
from omnitune.paths import EXPERIMENT, MAX_NAME_BYTES, PRETRAINED, file_stem, names_folder


def read_benchmarks(paths: Iterable[str], where: str) -> dict[str, Benchmark]:
    """Benchmarks by the stems of their files, sorted; raises ConfigError for one that is wrong, or has another's name.

    Args:
        paths: of the files.
        where: the file that names them.
    """
    named: dict[str, Benchmark] = {}
    for path in sorted(map(Path, paths), key=file_stem):
        name = file_stem(path)
        if name in named:
            raise ConfigError(f"{where}: benchmarks: two files are called {name!r}; a benchmark's name is its file's.")
        named[name] = load_config(path, Benchmark)
    for name in named:
        if not names_folder(name):
            raise ConfigError(
                f"benchmark {name}: {name!r} names folders; take letters, digits, `_`, `-` and `.` alone, at most "
                f"{MAX_NAME_BYTES} bytes."
            )
    return named


def check_reports(
    reports: Mapping[str, Sequence[str]], experiments: Iterable[str], swept: str | None, where: str
) -> None:
    """Raises ConfigError for a comparison that has no name of its own, or is not of experiments.

    Args:
        reports: names of experiments by the comparison's name.
        experiments: all names.
        swept: what a sweep's variants are named after.
        where: the file that names the reports.
    """
    known = list(experiments)
    for name, compared in reports.items():
        key = f"{where}: reports.{name}"
        if not names_folder(name):
            raise ConfigError(
                f"{key}: {name!r} names a folder; take letters, digits, `_`, `-` and `.`, at most "
                f"{MAX_NAME_BYTES} bytes."
            )
        if name in (swept, *known):
            raise ConfigError(f"{key}: an experiment or the sweep has this name already. Take another.")
        for experiment in compared:
            if experiment not in known:
                raise ConfigError(f"{key}: no experiment is named {experiment!r}; {nearest(experiment, known)}")
        if len(set(compared)) < len(compared):
            raise ConfigError(f"{key}: an experiment stands there twice. Take one of the two out.")


def by_name(found: Iterable[tuple[ExperimentOptions, Path]]) -> tuple[dict[str, ExperimentOptions], dict[str, Path]]:
    """Options and their files by the experiment's name; ConfigError where two have one name."""
    experiments: dict[str, ExperimentOptions] = {}
    files: dict[str, Path] = {}
    for options, path in found:
        if options.name in experiments:
            raise ConfigError(f"{path}: name: {options.name!r} is also the name in {files[options.name]}. Rename one.")
        experiments[options.name], files[options.name] = options, path
    return experiments, files


def check_judges(benchmarks: Mapping[str, Benchmark]) -> None:
    """Raises ConfigError where a judge runs here in one benchmark, and behind an endpoint in another."""
    local: dict[str, tuple[str, bool]] = {}
    for name, benchmark in benchmarks.items():
        for judge in benchmark.judges:
            other, here = local.setdefault(judge.name, (name, judge.base_url is None))
            if here != (judge.base_url is None):
                raise ConfigError(
                    f"benchmarks {other!r} and {name!r}: judges: {judge.name!r} has a base_url in one of them alone. "
                    "Rename one."
                )


def check_baselines(benchmarks: Mapping[str, Benchmark], starts: Mapping[str, StartingWeights]) -> None:
    """Raises ConfigError for a baseline that a run of this workflow makes: it has to be there before."""
    for benchmark, config in benchmarks.items():
        for name, path in config.baselines.items():
            place, key = Path(path).resolve(), f"benchmark {benchmark!r}: baselines.{name}: {path} is"
            for experiment, start in starts.items():
                if place.is_relative_to(Path(EXPERIMENT.format(experiment=experiment)).resolve()):
                    raise ConfigError(
                        f"{key} of the experiment {experiment!r}, which this config trains. Compare experiments by "
                        "`reports` of the workflow's config."
                    )
                if place.is_relative_to(Path(PRETRAINED.format(model=start.model)).resolve()):
                    raise ConfigError(
                        f"{key} the base of {experiment!r}, which this workflow prepares. It is a row already; name "
                        "another folder."
                    )


def check_base_models(starts: Mapping[str, StartingWeights], files: Mapping[str, Path]) -> None:
    """Raises ConfigError where two base models come to one folder; files are the options files, by experiment."""
    sources: dict[str, dict[str, Any]] = {}
    for name, start in starts.items():
        ours = keys_affecting(start.source, "base", prefix="model.")
        theirs = sources.setdefault(start.model, ours)
        if ours != theirs:
            raise ConfigError(
                f"{files[name]}: its base model would be resources/pretrained/{start.model}, and so "
                f"would that of another experiment, which is not the same: {ours} and {theirs}. Name one by "
                "another path."
            )


def check_datasets(experiments: Mapping[str, ExperimentOptions], files: Mapping[str, Path]) -> None:
    """Raises ConfigError where experiments share a data set and do not agree in how it is prepared."""
    owners: dict[str, str] = {}
    for name, options in experiments.items():
        dataset = options.data.dataset
        other = experiments[owners.setdefault(dataset, name)]
        ours, theirs = _preparation(options.data), _preparation(other.data)
        differing = [key for key in ours if ours[key] != theirs[key]]
        if differing:
            values = "; ".join(f"data.{key}: {theirs[key]!r} and {ours[key]!r}" for key in differing)
            raise ConfigError(
                f"{files[other.name]} and {files[name]} share the data set {dataset!r} "
                f"(the stem of data.data_path) but differ in {values}. "
                "Make them equal or copy the mixture file to another name."
            )


def _preparation(data: DataOptions) -> dict[str, Any]:
    """The keys that experiments which share a data set must agree in."""
    keys = keys_affecting(data, "samples", "manifests", "shards", "encodings", "groups")
    return {"data_path": data.data_path, **keys}


def check_nodes(experiments: Mapping[str, ExperimentOptions], files: Mapping[str, Path], cluster: Cluster) -> None:
    """Raises ConfigError for a training that the cluster's nodes cannot be shared by."""
    for name, options in experiments.items():
        train = options.train
        try:
            cluster.nodes_for(train.num_processes)
        except ValueError as error:
            sizes = f"{train.global_batch_size} / ({train.batch_size} x {train.gradient_accumulation_steps})"
            raise ConfigError(
                f"experiment {name!r}: {error} (global_batch_size / (batch_size x gradient_accumulation_steps) = "
                f"{sizes} = {train.num_processes}). Leave `nodes` out, or change the batch sizes in {files[name]}."
            ) from None


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: the known one that was meant, or else all of them."""
    listed = sorted(names)
    close = difflib.get_close_matches(name, listed, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(listed)}."

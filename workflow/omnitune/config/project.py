"""All that the workflow runs: experiments, benchmarks and data sets, checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnitune.config.base import ConfigError, check_config, load_config
from omnitune.config.benchmark import Benchmark
from omnitune.config.options import DataOptions, ExperimentOptions
from omnitune.config.pretrained import StartingWeights, starting_weights
from omnitune.config.workflow import WorkflowConfig


@dataclass(frozen=True)
class Project:
    """What the workflow runs, by name.

    Attributes:
        experiments: options by experiment name.
        options_files: options file by experiment name.
        benchmarks: protocols by benchmark name.
        starts: starting weights by experiment name.
        shards_url: where tars are written, if not beside their index.
    """

    experiments: dict[str, ExperimentOptions]
    options_files: dict[str, Path]
    benchmarks: dict[str, Benchmark]
    starts: dict[str, StartingWeights]
    shards_url: str | None

    @classmethod
    def load(cls, config: Mapping[str, Any], where: str = "config/config.yaml") -> "Project":
        """Reads every file that the workflow's config names; raises ConfigError for whatever is wrong in any."""
        workflow = check_config(dict(config), WorkflowConfig, where)
        experiments: dict[str, ExperimentOptions] = {}
        files: dict[str, Path] = {}
        for path in map(Path, workflow.experiments):
            options = ExperimentOptions.load(path)
            if options.name in experiments:
                raise ConfigError(
                    f"{path}: name: {options.name!r} is also the name in {files[options.name]}. Rename one."
                )
            experiments[options.name], files[options.name] = options, path
        benchmarks: dict[str, Benchmark] = {}
        for path in map(Path, workflow.benchmarks):
            if path.stem in benchmarks:
                raise ConfigError(
                    f"{where}: benchmarks: two files are called {path.stem!r}; a benchmark's name is its file's."
                )
            benchmarks[path.stem] = load_config(path, Benchmark)
        starts = {name: starting_weights(options, experiments) for name, options in experiments.items()}
        project = cls(experiments, files, benchmarks, starts, workflow.shards_url)
        project._check_datasets()
        return project

    def _check_datasets(self) -> None:
        owners: dict[str, str] = {}
        for name, options in self.experiments.items():
            dataset = options.data.dataset
            other = self.experiments[owners.setdefault(dataset, name)]
            ours, theirs = options.data.preparation, other.data.preparation
            differing = [key for key in ours if ours[key] != theirs[key]]
            if differing:
                values = "; ".join(f"data.{key}: {theirs[key]!r} and {ours[key]!r}" for key in differing)
                raise ConfigError(
                    f"{self.options_files[other.name]} and {self.options_files[name]} share the data set {dataset!r} "
                    f"(the stem of data.data_path) but differ in {values}. "
                    "Make them equal or copy the mixture file to another name."
                )

    def dataset(self, name: str) -> DataOptions:
        """Data options of a prepared data set."""
        for options in self.experiments.values():
            if options.data.dataset == name:
                return options.data
        known = ", ".join(sorted({options.data.dataset for options in self.experiments.values()}))
        raise ConfigError(f"data set {name!r} belongs to no experiment; known: {known}.")

    @property
    def datasets(self) -> list[str]:
        """Names of all data sets."""
        return sorted({options.data.dataset for options in self.experiments.values()})

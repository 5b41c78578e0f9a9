"""The three kinds of configuration files, as pydantic models that refuse what they do not know."""

from omnitune.config.base import load_config
from omnitune.config.benchmarks.benchmark import Benchmark
from omnitune.config.experiment.options import ExperimentOptions, require_processes
from omnitune.config.experiment.starts import StartingWeights, evaluation_folders, starting_weights
from omnitune.config.mixtures.mixture import Mixture, MixtureEntry
from omnitune.config.workflow import Sweep, WorkflowConfig

__all__ = [
    "Benchmark",
    "ExperimentOptions",
    "Mixture",
    "MixtureEntry",
    "StartingWeights",
    "Sweep",
    "WorkflowConfig",
    "evaluation_folders",
    "load_config",
    "require_processes",
    "starting_weights",
]

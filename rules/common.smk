"""Loads the config and looks things up in it. All checks happen here, before any job starts."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Jobs import the package from here, whichever environment they run in.
PACKAGE_ROOT = str(Path(workflow.basedir) / "workflow")
sys.path.insert(0, PACKAGE_ROOT)
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    dict.fromkeys([PACKAGE_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
)

from omnitune.config import ConfigError, Project
from omnitune.data.mixture import read_mixture, relevant_files

try:
    PROJECT = Project.load(config)
    SOURCES = {
        dataset: {source.name: source for source in read_mixture(PROJECT.dataset(dataset).data_path)}
        for dataset in PROJECT.datasets
    }
except ConfigError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    dataset=r"[^/]+",
    source=r"[A-Za-z0-9_]+",
    shard=r"\d{5}",
    model=r"[^/]+",
    experiment=r"[^/]+",
    step=r"\d+",
    benchmark=r"[^/]+",
    part=r"\d+",
    weights=r"transformer|transformer_lora",


def all_summaries():
    return expand("prepared/{dataset}/validation/summary.json", dataset=PROJECT.datasets)


def all_indexes():
    return expand("prepared/{dataset}/shards/index.parquet", dataset=PROJECT.datasets)


def all_trainings():
    return expand("experiments/{experiment}/train.json", experiment=PROJECT.experiments)


def all_conversions():
    return [
        conversion_of(experiment, step)
        for experiment, options in PROJECT.experiments.items()
        for step in options.evaluated_steps
    ]


def all_scores():
    return [path for experiment in PROJECT.experiments for path in scores_of(experiment)]


def all_reports():
    return expand("experiments/{experiment}/report/index.html", experiment=PROJECT.experiments)


def conversion_of(experiment, step):
    folder = PROJECT.experiments[experiment].weights_folder
    return f"experiments/{experiment}/checkpoint-{step}/{folder}/conversion.json"


def scores_of(experiment):
    return expand(
        "experiments/{experiment}/evaluation/{step}/{benchmark}/scores.json",
        experiment=experiment,
        step=[0, *PROJECT.experiments[experiment].evaluated_steps],
        benchmark=PROJECT.benchmarks,
    )


def experiment_options(wildcards):
    return PROJECT.experiments[wildcards.experiment]


def options_file(wildcards):
    return str(PROJECT.options_files[wildcards.experiment])


def base_model(wildcards):
    return f"{PROJECT.starts[wildcards.experiment].base}/model_index.json"


def base_folder(wildcards):
    return str(PROJECT.starts[wildcards.experiment].base)


def starting_transformer(wildcards):
    return str(PROJECT.starts[wildcards.experiment].transformer)


def starting_conversion(wildcards):
    """The conversion that another experiment must have done first; nothing where training starts from the base."""
    upstream = PROJECT.starts[wildcards.experiment].upstream
    return conversion_of(*upstream) if upstream and upstream[0] in PROJECT.experiments else []

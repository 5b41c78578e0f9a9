"""Build the report of an experiment."""

from pathlib import Path

from omnitune.console import job
from omnitune.paths import EvaluatedStep
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]):
    project = Project.load(snakemake.config)
    Experiment.of(project, snakemake.wildcards.experiment).report(
        project.benchmarks,
        Path(snakemake.output.html),
        {EvaluatedStep.parse(step): Path(folder) for step, folder in snakemake.params.evaluations.items()},
    )

"""Lay out a benchmark's images for the scorer of its prompts' format."""

from omnitune.console import job
from omnitune.paths import EvaluatedStep
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]):
    project, wildcards = Project.load(snakemake.config), snakemake.wildcards
    name, step = wildcards.benchmark, EvaluatedStep.parse(wildcards.step)
    Experiment.of(project, wildcards.experiment).evaluation(name, project.benchmarks[name], step).export()

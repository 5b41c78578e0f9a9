"""Ask a judge about a benchmark's images."""

from omnitune.console import job
from omnitune.distributed.gpus import reserved_gpus
from omnitune.paths import EvaluatedStep
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]), reserved_gpus(snakemake.resources.gpus_per_node):
    project, wildcards = Project.load(snakemake.config), snakemake.wildcards
    name, step = wildcards.benchmark, EvaluatedStep.parse(wildcards.step)
    evaluation = Experiment.of(project, wildcards.experiment).evaluation(name, project.benchmarks[name], step)
    evaluation.judge(wildcards.judge)

"""Train an experiment on the nodes of this job."""

from omnitune.console import job
from omnitune.launching.job import launch_job
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]):
    experiment = Experiment.of(Project.load(snakemake.config), snakemake.wildcards.experiment)
    launch_job(
        experiment.options,
        experiment.training_files(),
        nodes=snakemake.resources.nodes,
        gpus_per_node=snakemake.resources.gpus_per_node,
        threads=snakemake.threads,
    )

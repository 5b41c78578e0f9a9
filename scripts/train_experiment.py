"""Train an experiment on the nodes of this job."""

from omnitune.console import job
from omnitune.launching.job import launch_job
from omnitune.project import Project
from omnitune.training.inputs import TrainingFiles

with job(snakemake.log[0]):
    project, name = Project.load(snakemake.config), snakemake.wildcards.experiment
    launch_job(
        project.experiments[name],
        TrainingFiles.of_workflow(project.experiments[name], project.options_files[name], project.starts[name]),
        nodes=snakemake.resources.nodes,
        gpus_per_node=snakemake.resources.gpus_per_node,
        threads=snakemake.threads,
    )

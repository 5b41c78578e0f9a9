"""Train an experiment on the nodes of this job."""

from omnitune.console import job
from omnitune.distributed.gpus import reserved_gpus
from omnitune.project import Project
from omnitune.stages import Experiment

with job(snakemake.log[0]), reserved_gpus(snakemake.resources.gpus_per_node):
    experiment = Experiment.of(Project.load(snakemake.config), snakemake.wildcards.experiment)
    resources = snakemake.resources
    experiment.train(nodes=resources.nodes, gpus_per_node=resources.gpus_per_node, threads=snakemake.threads)

"""Train an experiment on the nodes of this job."""

from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.console import job
from omnitune.training.files import TrainingFiles
from omnitune.training.launch import launch_job

with job(snakemake.log[0]):
    files = TrainingFiles(
        config=Path(snakemake.input.options),
        base=Path(snakemake.params.base),
        transformer=Path(snakemake.params.transformer),
        index=Path(snakemake.input.index),
        encoded=Path(snakemake.params.encoded),
        output=Path(snakemake.output.manifest).parent,
    )
    launch_job(
        ExperimentOptions.load(files.config),
        files,
        nodes=snakemake.resources.nodes,
        gpus_per_node=snakemake.resources.gpus_per_node,
        threads=snakemake.threads,
    )

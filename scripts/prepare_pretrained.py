"""Build or fetch the base model's pipeline folder."""

from pathlib import Path

from omnitune.console import job
from omnitune.project import Project
from omnitune.stages import prepare_base

with job(snakemake.log[0]):
    project = Project.load(snakemake.config)
    prepare_base(project, snakemake.wildcards.model, Path(snakemake.output.manifest).parent)

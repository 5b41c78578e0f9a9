"""Build or fetch the base model's pipeline folder."""

from pathlib import Path

from omnitune.console import job
from omnitune.pretrained.prepare import prepare_pretrained
from omnitune.project import Project

with job(snakemake.log[0]):
    project, model = Project.load(snakemake.config), snakemake.wildcards.model
    folder = Path(snakemake.output.manifest).parent
    prepare_pretrained(project.base_source(model), folder, cache_dir=project.download_cache(model))

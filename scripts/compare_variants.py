"""Compare the variants of a sweep."""

from pathlib import Path

from omnitune.console import job
from omnitune.project import Project
from omnitune.stages import compare_variants

with job(snakemake.log[0]):
    compare_variants(Project.load(snakemake.config), Path(snakemake.output.html), Path(snakemake.output.table))

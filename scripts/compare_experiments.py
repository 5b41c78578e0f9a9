"""Compare experiments side by side."""

from pathlib import Path

from omnitune.console import job
from omnitune.project import Project
from omnitune.stages import compare_experiments

with job(snakemake.log[0]):
    project, name = Project.load(snakemake.config), snakemake.wildcards.comparison
    page, table = Path(snakemake.output.html), Path(snakemake.output.table)
    compare_experiments(project, name, project.comparisons[name], page, table)

"""Write prompts in a published format as our own."""

from pathlib import Path

from omnitune.console import job
from omnitune.evaluation.foreign import import_prompts
from omnitune.project import Project

with job(snakemake.log[0]):
    benchmark = Project.load(snakemake.config).foreign[snakemake.wildcards.benchmark]
    import_prompts(benchmark, Path(snakemake.output.prompts))

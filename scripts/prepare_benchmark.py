"""Write down what a benchmark has been read as."""

from pathlib import Path

from omnitune.console import job
from omnitune.evaluation.model_files import fetch_judges, models_read
from omnitune.evaluation.prompts import read_prompts, write_protocol
from omnitune.project import Project

with job(snakemake.log[0]):
    benchmark = Project.load(snakemake.config).benchmarks[snakemake.wildcards.benchmark]
    fetch_judges(benchmark)
    prompts = read_prompts(benchmark, Path())
    files = Path(snakemake.output.protocol), Path(snakemake.output.scoring)
    write_protocol(benchmark, prompts, *files, models_read(benchmark))

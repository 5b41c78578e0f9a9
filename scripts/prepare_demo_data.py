"""Draw the demo's data set."""

from pathlib import Path

from omnitune.console import job
from omnitune.demo.dataset import write_dataset

with job(snakemake.log[0]):
    write_dataset(Path(snakemake.output.training[0]).parent)

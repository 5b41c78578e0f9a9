"""Join the indexes of a data set's tars."""

from pathlib import Path

from omnitune.console import job
from omnitune.data.shard import write_index

with job(snakemake.log[0]):
    write_index([Path(path) for path in snakemake.input.parts], Path(snakemake.output.index))

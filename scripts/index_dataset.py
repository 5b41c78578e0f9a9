"""Join the indexes of a data set's tars."""

from pathlib import Path

from omnitune.console import job
from omnitune.sharding.digests import write_shard_digests
from omnitune.sharding.write_index import write_index

with job(snakemake.log[0]):
    parts = [Path(path) for path in snakemake.input.parts]
    write_shard_digests(parts, Path(snakemake.output.digests))
    write_index(parts, Path(snakemake.output.index))

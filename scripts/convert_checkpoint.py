"""Convert one checkpoint to one of the formats and verify it."""

from pathlib import Path

from omnitune.config.affects import read_key_lines
from omnitune.console import job
from omnitune.stages import convert_checkpoint

with job(snakemake.log[0]):
    keys, base = read_key_lines(snakemake.params), snakemake.input.base
    convert_checkpoint(
        Path(snakemake.output.manifest).parent,
        Path(snakemake.params.transformer),
        base=Path(base).parent if base else None,
        dtype=keys["dtype"],
        max_shard_size=keys["max_shard_size"],
        rank=keys["extracted_rank"],
    )

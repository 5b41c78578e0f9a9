"""Merge the sources' ledgers, apply the reject limit and cut the samples into shards."""

from pathlib import Path

from omnitune.config.affects import read_key_lines
from omnitune.console import job
from omnitune.validation.dataset import ShardCut, merge_validation

with job(snakemake.log[0]):
    keys = read_key_lines(snakemake.params)
    merge_validation(
        [Path(path).parent for path in snakemake.input.sources],
        Path(snakemake.output.samples).parent,
        max_reject_fraction=keys["max_reject_fraction"],
        cut=ShardCut.from_keys(keys),
    )

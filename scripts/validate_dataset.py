"""Merge the sources' ledgers, apply the reject limit and plan the shards."""

from pathlib import Path

from omnitune.console import job
from omnitune.data.merge import ShardCut, merge_validation

with job(snakemake.log[0]):
    merge_validation(
        [Path(path).parent for path in snakemake.input.sources],
        Path(snakemake.output.samples).parent,
        max_reject_fraction=snakemake.params.max_reject_fraction,
        cut=ShardCut(**snakemake.params.cut),
    )

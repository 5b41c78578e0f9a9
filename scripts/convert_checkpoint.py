"""Convert one checkpoint to the published format and verify it."""

from pathlib import Path

from omnitune.console import job
from omnitune.stages import convert_checkpoint

with job(snakemake.log[0]):
    convert_checkpoint(Path(snakemake.output.manifest).parent, Path(snakemake.params.transformer))

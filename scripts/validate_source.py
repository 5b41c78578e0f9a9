"""Check each row and image of one source."""

from pathlib import Path

from omnitune.console import job
from omnitune.data.validate import validate_source

with job(snakemake.log[0]):
    validate_source(
        snakemake.wildcards.source,
        [Path(path) for path in snakemake.input.samples],
        Path(snakemake.output.samples).parent,
        workers=snakemake.threads,
    )

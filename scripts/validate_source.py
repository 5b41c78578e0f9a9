"""Check each row and image of one source."""

from pathlib import Path

from omnitune.console import job
from omnitune.data.validate import Checks, validate_source

with job(snakemake.log[0]):
    validate_source(
        snakemake.wildcards.source,
        snakemake.params.files,
        Path(snakemake.output.samples).parent,
        Checks(**snakemake.params.checks, tokenizer=snakemake.params.tokenizer),
        workers=snakemake.threads,
    )

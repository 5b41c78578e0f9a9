"""Check each row and image of one source."""

from pathlib import Path

from omnitune.config.affects import read_key_lines
from omnitune.console import job
from omnitune.validation.source import Checks, validate_source

with job(snakemake.log[0]):
    validate_source(
        snakemake.wildcards.source,
        snakemake.params.files,
        Path(snakemake.output.samples).parent,
        Checks.from_keys(
            read_key_lines(snakemake.params),
            tokenizer=str(Path(snakemake.input.tokenizer).parent),
            source_roots=snakemake.params.source_roots,
        ),
        workers=snakemake.threads,
    )

"""Build or fetch the base model's pipeline folder."""

from pathlib import Path

from omnitune.config.options import ModelOptions
from omnitune.console import job
from omnitune.pretrained import prepare_pretrained

with job(snakemake.log[0]):
    prepare_pretrained(
        ModelOptions(**snakemake.params.source),
        Path(snakemake.output.manifest).parent,
        cache_dir=snakemake.params.cache_dir or None,
    )

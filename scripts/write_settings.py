"""Write down the settings of a stage, so that they are a file to depend on."""

from pathlib import Path

from omnitune.console import job
from omnitune.files import write_json

with job(snakemake.log[0]):
    write_json(Path(snakemake.output.settings), dict(snakemake.params.settings))

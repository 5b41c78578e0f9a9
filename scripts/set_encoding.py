"""Write down how a data set is encoded."""

from pathlib import Path

from omnitune.console import job
from omnitune.files import write_json

with job(snakemake.log[0]):
    write_json(Path(snakemake.output.settings), dict(snakemake.params.settings))

"""Write down the pixel limits of a data set."""

from pathlib import Path

from omnitune.console import job
from omnitune.files import write_json

with job(snakemake.log[0]):
    write_json(Path(snakemake.output.limits), dict(snakemake.params.limits))

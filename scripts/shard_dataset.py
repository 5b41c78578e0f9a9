"""Write one tar."""

from pathlib import Path

from omnitune.console import job
from omnitune.data.shard import ImageLimits, write_shard

with job(snakemake.log[0]):
    write_shard(Path(snakemake.input.manifest), Path(snakemake.output.tar), ImageLimits(**snakemake.params.limits))

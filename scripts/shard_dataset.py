"""Write one tar and its index."""

import json
from pathlib import Path

from omnitune import storage
from omnitune.console import job
from omnitune.data.shard import ImageLimits, write_shard

with job(snakemake.log[0]):
    limits = ImageLimits(**json.loads(Path(snakemake.input.limits).read_text()))
    name = f"{snakemake.wildcards.source}-{snakemake.wildcards.shard}.tar"
    tar = storage.join(snakemake.params.tars, name)
    write_shard(Path(snakemake.input.manifest), tar, Path(snakemake.output.index), limits)

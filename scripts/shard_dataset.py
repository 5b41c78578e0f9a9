"""Write one tar and its index."""

import json
from pathlib import Path

from omnitune import storage
from omnitune.console import job
from omnitune.data.shard import ImageLimits, write_shard

with job(snakemake.log[0]):
    settings = json.loads(Path(snakemake.input.settings).read_text())
    tar = storage.join(settings["tars"], f"{snakemake.wildcards.source}-{snakemake.wildcards.shard}.tar")
    limits = ImageLimits(**settings["limits"])
    write_shard(Path(snakemake.input.manifest), tar, Path(snakemake.output.index), limits)

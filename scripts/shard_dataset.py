"""Write one tar and its index."""

import json
from pathlib import Path

from omnitune.console import job
from omnitune.data.shard import ImageLimits, write_shard

with job(snakemake.log[0]):
    limits = ImageLimits(**json.loads(Path(snakemake.input.limits).read_text()))
    paths = (Path(path) for path in (snakemake.input.manifest, snakemake.output.tar, snakemake.output.index))
    write_shard(*paths, limits)

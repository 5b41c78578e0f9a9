"""Write one tar and its index."""

from pathlib import Path

from omnitune.config.affects import read_key_lines
from omnitune.console import job
from omnitune.io import storage
from omnitune.io.store import Store
from omnitune.io.url_limits import UrlLimits
from omnitune.sharding.shard import ImageLimits, write_shard

with job(snakemake.log[0]):
    keys, manifest = read_key_lines(snakemake.params), Path(snakemake.input.digest).with_suffix(".jsonl")
    tar = storage.join(keys["tars"], f"{manifest.stem}.tar")
    urls, image_root = UrlLimits.from_keys(snakemake.params.urls), snakemake.params.urls["image_root"]
    others = {"urls": urls, "image_root": image_root, "store": Store.of(snakemake.config.get("store"))}
    limits = ImageLimits.from_keys(keys)
    write_shard(manifest, tar, Path(snakemake.output.index), limits, workers=snakemake.threads, **others)

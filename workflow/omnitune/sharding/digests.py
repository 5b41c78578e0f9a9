"""What prepared data comes to, in a few bytes: of each source, and of each tar. Imports nothing heavy."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnitune.errors import ConfigError
from omnitune.io.files import atomic_folder, write_text
from omnitune.paths import parse_shard

SHARDS = "shards"  # keys in the metadata of index.parquet and index.arrow
SOURCES = "sources"
LIMITS = "limits"  # also in that of each shard's index: of images, as JSON


def index_metadata(parts: Sequence[Path]) -> dict[str, str]:
    """What an index over these shards says of itself: a hash over all tars, and facts of each source.

    Args:
        parts: the shards' indexes, in order.

    Returns:
        `shards`, which two files of the same tars share, and `sources`: by name the number of samples and a hash over
        all of them in order, which neither depends on how they are cut into tars nor on where these lie. `limits` of
        images, where all shards were made under the same.
    """
    tars = hashlib.sha256()
    samples: dict[str, int] = {}
    hashes: dict[str, Any] = {}
    limits: set[bytes | None] = set()
    for part in parts:
        source, _ = parse_shard(part)
        rows = pq.read_table(part, columns=["tar", "tar_sha256", "key", "sha256"])
        limits.add((rows.schema.metadata or {}).get(LIMITS.encode()))
        tars.update(f"{part.stem} {rows.select(['tar', 'tar_sha256']).slice(0, 1).to_pylist()}\n".encode())
        samples[source] = samples.get(source, 0) + rows.num_rows
        digest = hashes.setdefault(source, hashlib.sha256())
        update_digest(digest, rows)
    sources = {name: {"samples": samples[name], "sha256": hashes[name].hexdigest()} for name in sorted(samples)}
    [common] = limits if len(limits) == 1 else [None]
    return {SHARDS: tars.hexdigest(), SOURCES: json.dumps(sources), **({LIMITS: common.decode()} if common else {})}


def update_digest(digest: Any, rows: pa.Table | pa.RecordBatch) -> None:
    """Adds the keys and hashes of samples to the hash over a source's samples."""
    lines = pc.binary_join_element_wise(rows.column("key"), rows.column("sha256"), " ")
    text = "\n".join(lines.to_pylist())  # in one piece: tens of millions of rows take seconds
    digest.update(f"{text}\n".encode() if text else b"")


def read_sources(index: Path) -> dict[str, dict[str, Any]]:
    """The facts of each source that an index holds; ConfigError where it cannot be read or says nothing of them."""
    try:
        metadata = pq.read_schema(index).metadata or {}
        found: dict[str, dict[str, Any]] = json.loads(metadata[SOURCES.encode()])
    except (OSError, pa.ArrowException, KeyError, RecursionError, ValueError) as error:
        raise ConfigError(
            f"{index}: cannot be read as an index of shards ({error}). Write it again: "
            "snakemake --cores 2 shard --forcerun index_dataset"
        ) from None
    return found


def read_limits(index: Path) -> dict[str, Any] | None:
    """The limits of images, by the names of their keys, that shards were made under; None where they do not say so."""
    found = (pq.read_schema(index).metadata or {}).get(LIMITS.encode())
    return json.loads(found) if found else None


def write_shard_digests(parts: Iterable[Path], folder: Path) -> None:
    """Writes {source}-{shard}.sha256 with the hash of each shard's tar: which Snakemake compares by content."""
    with atomic_folder(folder) as temporary:
        for part in parts:
            sha256 = pq.read_table(part, columns=["tar_sha256"])["tar_sha256"][0].as_py()
            write_text(temporary / f"{part.stem}.sha256", f"{sha256}\n")

"""Write validated samples as WebDataset shards, and the index over them.

A tar depends on its manifest and the limits alone: the same two give the same bytes on every run.
"""

import hashlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from omnitune.console import Progress
from omnitune.errors import ConfigError
from omnitune.images.prepare import ImageLimits, PreparedImage
from omnitune.images.verdicts import DECODE_SECONDS
from omnitune.io import storage
from omnitune.io.files import atomic_path, json_line, lock, sha256_of
from omnitune.io.parquet import ParquetRows
from omnitune.io.store import Store, store_key
from omnitune.io.url_limits import USUAL, UrlLimits
from omnitune.io.workers import ordered_map
from omnitune.paths import parse_shard
from omnitune.sharding import FORMAT
from omnitune.sharding.digests import LIMITS
from omnitune.sharding.index_row import INDEX_SCHEMA
from omnitune.sharding.sample_images import named, prepared_images
from omnitune.sharding.tar_writer import MemberWriter
from omnitune.sharding.write_index import write_index
from omnitune.validation.dataset import SHARDS
from omnitune.validation.sample import CARRIED

INDEX = "index.parquet"
MAPPED = "index.arrow"
TOKEN_PIXELS = 16 * 16  # a token is a patch of 16 x 16 pixels
NAMED_ROWS = 20  # of those that cannot be written
logger = logging.getLogger(__name__)


def write_shard(
    manifest: Path,
    tar: Path | str,
    index: Path,
    limits: ImageLimits,
    urls: UrlLimits = USUAL,
    image_root: str | None = None,
    workers: int = 1,
    store: Store | None = None,
) -> int:
    """Writes a manifest's samples as one tar: {key}.json, {key}.input_0.{ext} .., {key}.output.{ext}; and its index.

    Args:
        manifest: shards/{source}-{shard}.jsonl of the validation.
        tar: the file to write, {source}-{shard}.tar, beside the index; or a URL, to which it is uploaded once it is
            whole.
        index: the parquet file to write, one row per sample with the place of each member's bytes. It comes last.
        limits: of image sizes, and how changed images are written.
        urls: how much is read from images at URLs, how long, and from where.
        image_root: where that is a URL, redirects must stay below it.
        workers: processes that prepare images; the written bytes do not depend on it.
        store: what projects share, for local tars.

    Returns:
        Number of samples.

    Raises:
        ValueError: for images that are no longer what was validated, that cannot be decoded, or that the limits leave
            no pixels of, all those of the shard together; for a URL that cannot be written to.
        OSError: where a disk or a service fails.
    """
    source, shard = parse_shard(tar)
    name = str(tar) if storage.is_url(tar) else Path(tar).name
    rows = _read_rows(manifest, limits)
    held = lock(
        Path(index).with_name(f".{Path(index).stem}.lock"),
        f"{tar}: another process is writing this shard. Wait for it or stop it.",
    )
    key = None if store is None or storage.is_url(tar) else _shared_key(rows, Path(tar).stem, limits)
    with held:
        if store and key and store.take(key, [Path(tar), Path(index)]):
            return len(rows)
        with storage.atomic_file(tar, scratch=Path(index).parent) as temporary:
            with MemberWriter(temporary) as members:
                prepare = partial(prepared_images, limits=limits, urls=urls, image_root=image_root)
                samples = _add_samples(members, rows, prepare, workers)
            size, digest = temporary.stat().st_size, sha256_of(temporary)
        facts = {"source": source, "shard": shard, "tar": name, "tar_bytes": size, "tar_sha256": digest}
        _write_rows(index, limits, ({**sample, **facts} for sample in samples))
        if store and key:
            store.put(key, [Path(tar), Path(index)])
    return len(rows)


def _shared_key(rows: list[dict[str, Any]], name: str, limits: ImageLimits) -> str | None:
    """What a tar is a function of, wherever its images lie; None where these were not hashed."""
    samples = [{column: row[column] for column in (*CARRIED, "sha256")} for row in rows]
    if any(None in sample["sha256"] for sample in samples):
        return None
    digest = hashlib.sha256("".join(map(json_line, samples)).encode()).hexdigest()
    return store_key({"format": FORMAT, "name": name, "limits": asdict(limits), "samples": digest})


def _read_rows(manifest: Path, limits: ImageLimits) -> list[dict[str, Any]]:
    """The rows of a manifest; says in the log what the limits will do to their images."""
    with Path(manifest).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    note = limits.note(max((len(row["input_images"]) for row in rows), default=0))
    if note:
        logger.warning("%s: %s", manifest, note)
    return rows


def _write_rows(index: Path, limits: ImageLimits, rows: Iterable[dict[str, Any]]) -> None:
    schema = INDEX_SCHEMA.with_metadata({LIMITS: json.dumps(asdict(limits))})
    with atomic_path(Path(index)) as temporary, ParquetRows(temporary, schema) as written:
        for row in rows:
            written.append(row)


def _add_samples(
    members: MemberWriter,
    rows: list[dict[str, Any]],
    prepare: Callable[[dict[str, Any]], list[PreparedImage] | str],
    workers: int,
) -> list[dict[str, Any]]:
    """Writes the members of all samples; returns their rows of the index, but for what all rows of the tar share."""
    samples, faults = [], []
    may_fork = "pyvips" not in sys.modules  # the threads of libvips, once it has been used, do not survive that
    prepared = ordered_map(prepare, ([row] for row in rows), workers, _fault_on_death, may_fork)
    for row, [images] in zip(rows, prepared, strict=True):
        if isinstance(images, str):
            faults.append(images)
        elif not faults:
            samples.append(_add_sample(members, row, images))
    if faults:
        rest = [f"and {len(faults) - NAMED_ROWS} further rows"] if len(faults) > NAMED_ROWS else []
        raise ValueError("\n".join([*faults[:NAMED_ROWS], *rest]))
    return samples


def _fault_on_death(row: dict[str, Any], code: int) -> str:
    how = f"takes more than {DECODE_SECONDS} seconds of a processor" if code == -signal.SIGPROF else "ends the process"
    places = ", ".join([*row["input_images"], row["output_image"]])
    return f"{named(row)}: writing one of {places} {how} (exit code {code}). Take the row out."


def _add_sample(members: MemberWriter, row: dict[str, Any], images: list[PreparedImage]) -> dict[str, Any]:
    """Writes the members of one sample; returns its row of the index, but for what all rows of the tar share."""
    key, carried = row["key"], {name: row[name] for name in CARRIED}
    facts = [{"width": image.width, "height": image.height, "kept": image.kept} for image in images]
    names = [*(f"input_{k}" for k in range(len(images) - 1)), "output"]
    contents = [json_line({**carried, "images": facts}).encode("utf-8"), *(image.data for image in images)]
    offsets = [members.add(key, "json", contents[0])]
    for name, image in zip(names, images, strict=True):
        offsets.append(members.add(key, f"{name}.{image.extension}", image.data))
    tokens = [image.width * image.height // TOKEN_PIXELS for image in images]
    return {
        **carried,
        "json_offset": offsets[0],
        "json_size": len(contents[0]),
        "image_offsets": offsets[1:],
        "image_sizes": [len(image.data) for image in images],
        "widths": [image.width for image in images],
        "heights": [image.height for image in images],
        "output_tokens": tokens[-1],
        "input_tokens": sum(tokens[:-1]),
        "sha256": hashlib.sha256(b"".join(contents)).hexdigest(),
    }


def shard_dataset(
    validated: Path,
    output: Path,
    limits: ImageLimits,
    workers: int = 1,
    progress: bool = True,
    tars: str | None = None,
    **others: Any,
) -> list[Path]:
    """Writes every shard of a validated data set, each with its index, and the index over all: output/index.parquet.

    Args:
        validated: folder that the validation wrote.
        output: folder for the indexes, and for the tars.
        limits: of image sizes, and how changed images are written.
        workers: processes; the written bytes do not depend on it.
        progress: report on stderr.
        tars: URL to write the tars below, instead of into `output`.
        others: `urls`, `image_root` and `store` of `write_shard`.

    Returns:
        The shards' indexes. Raises ConfigError where nothing was validated, and what `write_shard` raises.
    """
    manifests = sorted((Path(validated) / SHARDS).glob("*.jsonl"))
    if not manifests:
        raise ConfigError(f"{validated}: holds no {SHARDS}/*.jsonl; validate first (omnitune validate).")
    if tars is not None and not storage.is_url(tars):
        raise ConfigError(f"tars: {tars!r} is no URL; local tars lie in the output folder, beside their index.")
    output, parts = Path(output), []
    with Progress("write shards", len(manifests), "shards", enabled=progress) as reporter:
        for manifest in manifests:
            parts.append(output / f"{manifest.stem}.parquet")
            tar = storage.join(tars or str(output), f"{manifest.stem}.tar")
            write_shard(manifest, tar, parts[-1], limits, workers=workers, **others)
            reporter.advance()
    write_index(parts, output / INDEX)
    known = {INDEX, MAPPED, *(f"{part.stem}{kind}" for part in parts for kind in (".parquet", ".tar"))}
    strays = sorted(
        path.name for kind in ("tar", "parquet") for path in output.glob(f"*.{kind}") if path.name not in known
    )
    if strays:
        logger.warning("%s: of an earlier data set and not in the index: %s", output, ", ".join(strays))
    return parts

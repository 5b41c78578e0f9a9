"""Write validated samples as WebDataset shards, and the index over them.

A tar depends on its manifest and the limits alone: the same two give the same bytes on every run.
"""

import hashlib
import io
import json
import logging
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from omnitune.config import ConfigError
from omnitune.console import Progress
from omnitune.data.decode import ImageRefused, read_bytes
from omnitune.data.images import PreparedImage, prepare_image
from omnitune.data.merge import SHARDS
from omnitune.data.parquet import ParquetRows
from omnitune.data.workers import ordered_map
from omnitune.files import atomic_path, json_line

INDEX = "index.parquet"
TOKEN_PIXELS = 16 * 16  # a token is a patch of 16 x 16 pixels
SHARD_NAME = re.compile(r"(?P<source>[A-Za-z0-9_]+)-(?P<shard>\d{5,})")
logger = logging.getLogger(__name__)

INDEX_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("task_type", pa.string()),
        ("instruction", pa.string()),
        ("tar", pa.string()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
        ("image_offsets", pa.list_(pa.int64())),
        ("image_sizes", pa.list_(pa.int64())),
        ("widths", pa.list_(pa.int32())),
        ("heights", pa.list_(pa.int32())),
        ("output_tokens", pa.int32()),
        ("input_tokens", pa.int32()),
        ("sha256", pa.string()),
        ("tar_bytes", pa.int64()),
        ("tar_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class ImageLimits:
    """How large images may be in shards.

    Attributes:
        max_output_pixels: of an output image, width x height in pixels.
        max_input_pixels: of an input image; a list's k-th entry holds for samples with k inputs.
        max_side_length: of any side, in pixels.
    """

    max_output_pixels: int
    max_input_pixels: int | Sequence[int]
    max_side_length: int

    def input_limit(self, num_inputs: int) -> int:
        """Limit in pixels for each input image of a sample with that many; the last entry holds for more."""
        if isinstance(self.max_input_pixels, int):
            return self.max_input_pixels
        return self.max_input_pixels[min(num_inputs, len(self.max_input_pixels)) - 1]

    def note(self, max_inputs: int) -> str | None:
        """A sentence for the log where samples have more inputs than the list of limits has entries."""
        if isinstance(self.max_input_pixels, int) or max_inputs <= len(self.max_input_pixels):
            return None
        return (
            f"data.max_input_pixels has {len(self.max_input_pixels)} entries and samples have up to {max_inputs} input "
            f"images; the last entry, {self.max_input_pixels[-1]} pixels, holds for them"
        )


def write_shard(manifest: Path, tar: Path, index: Path, limits: ImageLimits) -> int:
    """Writes the samples of a manifest as one tar, {key}.json, {key}.input_0.{ext} .., {key}.output.{ext} each, and its index.

    Args:
        manifest: shards/{source}-{shard}.jsonl of the validation.
        tar: the file to write, {source}-{shard}.tar.
        index: the parquet file to write, one row per sample with the place of each member's bytes.
        limits: of image sizes.

    Returns:
        Number of samples.

    Raises:
        ValueError: for an image that is no longer what was validated, or that the limits leave no pixels of.
    """
    rows = [json.loads(line) for line in Path(manifest).read_text(encoding="utf-8").splitlines()]
    note = limits.note(max((len(row["input_images"]) for row in rows), default=0))
    if note:
        logger.warning("%s: %s", manifest, note)
    with atomic_path(Path(tar)) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            for name, content in _members(row, limits):
                member = tarfile.TarInfo(name)  # time 0, owner 0: nothing of this run goes into the bytes
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with atomic_path(Path(index)) as temporary, ParquetRows(temporary, INDEX_SCHEMA) as index_rows:
        for sample in read_tar(Path(tar)):
            index_rows.append(sample)
    return len(rows)


def _members(row: dict[str, Any], limits: ImageLimits) -> list[tuple[str, bytes]]:
    """File names and contents of one sample, in the order of the tar."""
    key, inputs = row["key"], row["input_images"]
    names = [*(f"input_{k}" for k in range(len(inputs))), "output"]
    images = []
    for position, path in enumerate([*inputs, row["output_image"]]):
        pixels = limits.max_output_pixels if position == len(inputs) else limits.input_limit(len(inputs))
        data = _read_validated(key, Path(path), row["bytes"][position], row["sha256"][position])
        images.append(_prepare(key, path, data, pixels, limits.max_side_length))
    description = {name: row[name] for name in ("key", "source", "task_type", "instruction")}
    description["images"] = [{"width": image.width, "height": image.height, "kept": image.kept} for image in images]
    members = [(f"{key}.json", json_line(description).encode("utf-8"))]
    members += [(f"{key}.{name}.{image.extension}", image.data) for name, image in zip(names, images, strict=True)]
    return members


def _read_validated(key: str, path: Path, size: int, sha256: str) -> bytes:
    """An image's bytes, which must still be those that were validated."""
    fix = "Validate again: snakemake --cores 2 --forcerun validate_source, or omnitune validate."
    try:
        data = read_bytes(path)
    except ImageRefused as error:
        raise ValueError(f"{key}: {error.message}, but it could be read at validation. {fix}") from None
    if len(data) != size:
        raise ValueError(f"{key}: {path} has {len(data)} bytes, but {size} at validation. {fix}")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(f"{key}: {path} has sha256 {found}, but {sha256} at validation. {fix}")
    return data


def _prepare(key: str, path: str, data: bytes, max_pixels: int, max_side_length: int) -> PreparedImage:
    try:
        return prepare_image(data, max_pixels, max_side_length)
    except ValueError as error:
        raise ValueError(f"{key}: {path}: {error}. Take the row out, or raise the limits in `data`.") from None


def write_index(parts: Sequence[Path], index: Path) -> int:
    """Joins the indexes of all shards into one, ordered by source and shard; returns the number of samples."""
    ordered = sorted(map(Path, parts), key=_source_and_shard)
    samples = 0
    with atomic_path(Path(index)) as temporary, pq.ParquetWriter(temporary, INDEX_SCHEMA, compression="zstd") as writer:
        for part in ordered:
            table = pq.read_table(part, schema=INDEX_SCHEMA)
            writer.write_table(table)
            samples += table.num_rows
    return samples


def _source_and_shard(path: Path) -> tuple[str, int]:
    match = SHARD_NAME.fullmatch(path.stem)
    if match is None:
        raise ValueError(f"{path}: shards are named {{source}}-{{shard}}, with five digits for the shard")
    return match["source"], int(match["shard"])


def read_tar(tar: Path) -> list[dict[str, Any]]:
    """The index rows of one tar. Raises ValueError where it is damaged or holds what no shard holds."""
    fix = "Delete it and run again."
    source, shard = _source_and_shard(tar)
    try:
        with tar.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.seek(0, io.SEEK_END)
            stream.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
            if any(stream.read()):  # a tar ends with two empty blocks; one cut off between members does not
                raise tarfile.ReadError("its end is missing")
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                samples = _samples(archive)
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{tar}: is no readable shard: {error}. {fix}") from None
    place = {"source": source, "shard": shard, "tar": tar.name, "tar_bytes": size, "tar_sha256": digest}
    return [{**place, **sample} for sample in samples]


def _samples(archive: tarfile.TarFile) -> list[dict[str, Any]]:
    groups: list[list[tarfile.TarInfo]] = []
    for member in archive:
        if member.name.endswith(".json"):
            groups.append([])
        if not groups:
            raise ValueError(f"{member.name} comes before any .json")
        groups[-1].append(member)
    return [_index_row(archive, group) for group in groups]


def _index_row(archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> dict[str, Any]:
    contents = []
    for member in members:
        stream = archive.extractfile(member)
        if stream is None:
            raise ValueError(f"{member.name} is no file")
        contents.append(stream.read())
    description = json.loads(contents[0])
    key, images = description["key"], description["images"]
    names = [f"{key}.json", *(f"{key}.input_{k}." for k in range(len(images) - 1)), f"{key}.output."]
    if len(names) != len(members) or not all(m.name.startswith(n) for m, n in zip(members, names, strict=True)):
        raise ValueError(f"the members of {key} are not those that its .json describes")
    tokens = [image["width"] * image["height"] // TOKEN_PIXELS for image in images]
    return {
        "key": key,
        "task_type": description["task_type"],
        "instruction": description["instruction"],
        "json_offset": members[0].offset_data,
        "json_size": members[0].size,
        "image_offsets": [member.offset_data for member in members[1:]],
        "image_sizes": [member.size for member in members[1:]],
        "widths": [image["width"] for image in images],
        "heights": [image["height"] for image in images],
        "output_tokens": tokens[-1],
        "input_tokens": sum(tokens[:-1]),
        "sha256": hashlib.sha256(b"".join(contents)).hexdigest(),
    }


def _write_one(manifest: Path, output: Path, limits: ImageLimits) -> Path:
    tar = output / f"{manifest.stem}.tar"
    write_shard(manifest, tar, tar.with_suffix(".parquet"), limits)
    return tar


def shard_dataset(
    validated: Path, output: Path, limits: ImageLimits, workers: int = 1, progress: bool = True
) -> list[Path]:
    """Writes every shard of a validated data set, each with its index, and the index over all: output/index.parquet.

    Returns the tars. Raises ConfigError where nothing was validated, and what `write_shard` raises.
    """
    manifests = sorted((Path(validated) / SHARDS).glob("*.jsonl"))
    if not manifests:
        raise ConfigError(f"{validated}: holds no {SHARDS}/*.jsonl; validate first (omnitune validate).")
    output, tars = Path(output), []
    with Progress("write shards", len(manifests), "shards", enabled=progress) as reporter:
        for tar in ordered_map(partial(_write_one, output=output, limits=limits), manifests, workers):
            tars.append(tar)
            reporter.advance()
    write_index([tar.with_suffix(".parquet") for tar in tars], output / INDEX)
    strays = sorted(tar.name for tar in set(output.glob("*.tar")) - set(tars))
    if strays:
        logger.warning("%s: of an earlier data set and not in the index: %s", output, ", ".join(strays))
    return tars

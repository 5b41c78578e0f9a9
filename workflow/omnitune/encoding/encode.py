"""Encode shards once, so that training need not: posteriors of all images, text features of all instructions.

Beside each other in the folder of an encoding lie, per shard, a tar with one {key}.safetensors per sample and its
index; a shard is done once its index is there. A group's index joins those of its shards.
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor

from omnitune.config import ExperimentOptions
from omnitune.config.data import DataOptions
from omnitune.console import Progress
from omnitune.distributed.processes import (
    MISTAKE,
    Topology,
    accelerate_command,
    die_with_parent,
    launch_environment,
    launched_rank,
    require_gpus,
    run,
)
from omnitune.encoding.fingerprint import COMPONENTS, FINGERPRINT, fingerprint_of, stored_fingerprint
from omnitune.encoding.groups import group_path, group_shards
from omnitune.encoding.read import DROPPED, ENCODED_SCHEMA, checksum
from omnitune.io.files import atomic_path, lock
from omnitune.io.parquet import ParquetRows
from omnitune.io.store import Store, store_key
from omnitune.models.encoder import FrozenEncoder
from omnitune.paths import shard_name
from omnitune.pretrained.weights import check_weights
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import IndexRow
from omnitune.sharding.tar_writer import MemberWriter
from omnitune.validation.row import remove_cliche

logger = logging.getLogger("omnitune")

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BATCH_PIXELS = 2**22  # of equally large images in one pass of the VAE
CHUNK_PIXELS = 2**25  # of the images that are held at once, 0.4 GB; twice that while the next ones are read
CHUNK_SAMPLES = 64
TEXT_BATCH = 16  # instructions in one pass of the text encoder


@dataclass(frozen=True)
class EncodingFiles:
    """What an encoding reads and writes.

    Attributes:
        config: options file.
        base: pipeline folder with VAE, text encoder and tokenizer.
        output: prepared/{dataset}/encoded/{model}.
    """

    config: Path
    base: Path
    output: Path

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        return [word for name, path in vars(self).items() for word in (f"--{name}", str(path))]


def encode(
    options: ExperimentOptions,
    files: EncodingFiles,
    shards: Sequence[Path],
    topology: Topology,
    store: Store | None = None,
) -> list[Path]:
    """Encodes shards, but for those that are done, and writes the indexes of their groups.

    Args:
        options: of the experiment; its `data` section is used.
        files: what is read and written.
        shards: indexes of the shards; their tars are found by them.
        topology: one node; its processes share the shards.
        store: what projects share.

    Returns:
        The groups' indexes.

    Raises:
        ValueError: where a file is missing or damaged, or a process failed; its own message stands above then.
    """
    data, fingerprint = options.data, fingerprint_of(files.base, options.data)
    groups = group_shards(shards, data.shards_per_encoding)
    indexes = {group_path(files.output, *group): members for group, members in groups.items()}
    with ExitStack() as stack:
        for index in indexes:
            taken = f"{index}: another process is encoding this group. Wait for it or stop it."
            stack.enter_context(lock(index.with_name(f".{index.stem}.lock"), taken))
        _encode_groups(options, files, indexes, fingerprint, topology, store)
    return list(indexes)


def _encode_groups(
    options: ExperimentOptions,
    files: EncodingFiles,
    indexes: Mapping[Path, Sequence[Path]],
    fingerprint: dict[str, Any],
    topology: Topology,
    store: Store | None,
) -> None:
    """Encodes the shards that are not done, and writes the indexes of their groups."""
    shards = [shard for members in indexes.values() for shard in members]
    missing = [shard for shard in shards if not _is_done(shard, files.output, fingerprint)]
    entries = [_shared(shard, files.output, fingerprint) for shard in missing]
    if stored_fingerprint(files.output / DROPPED) != fingerprint:
        entries.append((store_key({"name": DROPPED, "fingerprint": fingerprint}), [files.output / DROPPED]))
    entries = [entry for entry in entries if store is None or not store.take(*entry)]
    missing = [shard for shard in missing if not _is_done(shard, files.output, fingerprint)]
    logger.info("%s: %d of %d shards are encoded already", files.output, len(shards) - len(missing), len(shards))
    if entries:
        _encode_missing(options, files, missing, topology)
    if store:
        for entry in entries:
            store.put(*entry)
    for index, members in indexes.items():
        with atomic_path(index) as temporary, pq.ParquetWriter(temporary, _schema(fingerprint)) as writer:
            for shard in members:
                writer.write_table(pq.read_table(files.output / shard.name, schema=_schema(fingerprint)))


def _shared(shard: Path, output: Path, fingerprint: dict[str, Any]) -> tuple[str, list[Path]]:
    """Key in a store, and files, of a shard's encoding."""
    tar_sha256 = pq.read_table(shard, columns=["tar_sha256"])["tar_sha256"][0].as_py()
    key = store_key({"name": shard.stem, "tar_sha256": tar_sha256, "fingerprint": fingerprint})
    return key, [output / f"{shard.stem}.tar", output / shard.name]


def encode_dataset(options: ExperimentOptions, files: EncodingFiles, index: Path, topology: Topology) -> list[Path]:
    """Encodes all shards that an index knows; see `encode`."""
    if not index.is_file():
        raise ValueError(f"{index}: is missing. Write shards first: snakemake --cores 2 shard, or omnitune shard.")
    names = pq.read_table(index, columns=["source", "shard"]).group_by(["source", "shard"]).aggregate([]).to_pylist()
    shards = sorted(index.with_name(f"{shard_name(**row)}.parquet") for row in names)
    return encode(options, files, shards, topology)


def _encode_missing(
    options: ExperimentOptions, files: EncodingFiles, shards: Sequence[Path], topology: Topology
) -> None:
    """In this process, or with `accelerate launch` in several."""
    require_gpus(topology.processes_per_node, "Lower the resource gpus_per_node, or --num_processes.")
    if topology.processes_per_node == 1:
        torch.set_num_threads(topology.threads_per_process)
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        encode_shards(options.data, files, shards, device)
        return
    arguments = [*files.arguments(), "--shards", *map(str, shards)]
    command = accelerate_command(topology, "omnitune.encoding", arguments, ["--multi_gpu"])
    code = run(command, launch_environment(topology))
    if code:
        raise ValueError(f"encoding {options.data.dataset} failed with exit code {code}; its messages stand above.")


def _is_done(shard: Path, output: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a shard has been encoded: from this tar, by these weights and options, and the result is still there."""
    index = output / shard.name
    if stored_fingerprint(index) != fingerprint:
        return False
    encoded = pq.read_table(index, columns=["tar", "tar_bytes", "shard_sha256"]).slice(0, 1).to_pylist()[0]
    tar = output / encoded["tar"]
    same = pq.read_table(shard, columns=["tar_sha256"])["tar_sha256"][0].as_py() == encoded["shard_sha256"]
    return same and tar.is_file() and tar.stat().st_size == encoded["tar_bytes"]


def _schema(fingerprint: dict[str, Any]) -> Any:
    return ENCODED_SCHEMA.with_metadata({FINGERPRINT: json.dumps(fingerprint)})


def encode_shards(
    data: DataOptions,
    files: EncodingFiles,
    shards: Sequence[Path],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Encodes every `world_size`-th of the shards from number `rank` on; process 0 also the dropped prompt."""
    fingerprint, own = fingerprint_of(files.base, data), shards[rank::world_size]
    dtype = DTYPES[data.encoded_precision]
    check_weights([files.base / name for name in COMPONENTS], rank, world_size)
    encoder = FrozenEncoder(
        files.base,
        device,
        text_dtype=dtype,
        max_text_tokens=data.maximum_text_tokens,
        use_chat_template=data.use_chat_template,
        batch_pixels=BATCH_PIXELS,
    )
    if rank == 0 and stored_fingerprint(files.output / DROPPED) != fingerprint:
        with atomic_path(files.output / DROPPED) as temporary:
            text = {"text": _stored(encoder.texts([""], drop=True)[0], dtype)}
            safetensors.torch.save_file(text, temporary, {FINGERPRINT: json.dumps(fingerprint)})
    logger.info("encoding %d shards in %d processes, on %s, %s", len(shards), world_size, device, dtype)
    samples = sum(pq.read_metadata(shard).num_rows for shard in own)
    name = f"encode {data.dataset}" + (f", process {rank} of {world_size}" if world_size > 1 else "")
    with Progress(name, samples, "samples", enabled=rank == 0) as progress:
        for shard in own:
            _encode_shard(ShardIndex(shard), files.output, encoder, dtype, fingerprint, progress)


def _encode_shard(
    index: ShardIndex,
    output: Path,
    encoder: FrozenEncoder,
    dtype: torch.dtype,
    fingerprint: dict[str, Any],
    progress: Progress,
) -> None:
    """Writes the encoding of a shard, and then its index, which is what says that the shard is done."""
    shard = Path(index.path)
    tar = output / shard.with_suffix(".tar").name
    places: list[dict[str, Any]] = []
    held = lock(
        output / f".{shard.stem}.lock", f"{tar}: another process is encoding this shard. Wait for it or stop it."
    )
    with held, atomic_path(tar) as temporary, MemberWriter(temporary) as members:
        for rows, images in _read_ahead(index):
            for row, tensors in zip(rows, encode_samples(encoder, rows, images), strict=True):
                content = safetensors.torch.save({name: _stored(tensor, dtype) for name, tensor in tensors.items()})
                offset = members.add(row.key, "safetensors", content)
                place = {"offset": offset, "size": len(content), "checksum": checksum(row.key, content)}
                names = {"source": row.source, "shard": row.shard, "key": row.key, "tar": tar.name}
                places.append({**names, **place, "shard_sha256": row.tar_sha256})
            progress.advance(len(rows))
    tar_bytes = tar.stat().st_size
    with atomic_path(output / shard.name) as temporary, ParquetRows(temporary, _schema(fingerprint)) as rows_of_index:
        for place in places:
            rows_of_index.append({**place, "tar_bytes": tar_bytes})


def encode_samples(
    encoder: FrozenEncoder, rows: Sequence[IndexRow], images: Sequence[Sequence[Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """What is stored of each sample: posteriors of its images (inputs then output) and its text features.

    Yields input_{k}.mean, input_{k}.logvar, .., output.mean, output.logvar [C, H, W] and text [L, D]; captions of
    text-to-image samples that start with a cliche have text_without_cliche as well.
    """
    posteriors = iter(encoder.posteriors([image for group in images for image in group]))
    captions = [remove_cliche(row.instruction) if row.task_type == "t2i" else row.instruction for row in rows]
    wanted = list(dict.fromkeys([*(row.instruction for row in rows), *captions]))
    texts: dict[str, Tensor] = {}
    for start in range(0, len(wanted), TEXT_BATCH):
        batch = wanted[start : start + TEXT_BATCH]
        texts |= zip(batch, encoder.texts(batch), strict=True)
    for row, caption, group in zip(rows, captions, images, strict=True):
        names = [*(f"input_{k}" for k in range(len(group) - 1)), "output"]
        tensors = {"text": texts[row.instruction]}
        if caption != row.instruction:
            tensors["text_without_cliche"] = texts[caption]
        for name in names:
            tensors[f"{name}.mean"], tensors[f"{name}.logvar"] = next(posteriors)
        yield tensors


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to("cpu", dtype).contiguous()


def _read_ahead(index: ShardIndex) -> Iterator[tuple[list[IndexRow], list[list[Tensor]]]]:
    """The samples of a shard in chunks, with their decoded images; the next chunk is read while one is worked on."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        waiting = None
        for rows in _chunks(index):
            reading = rows, [pool.submit(index.images, row) for row in rows]
            if waiting:
                yield waiting[0], [future.result() for future in waiting[1]]
            waiting = reading
        if waiting:
            yield waiting[0], [future.result() for future in waiting[1]]
    index.close()


def _chunks(index: ShardIndex) -> Iterator[list[IndexRow]]:
    rows: list[IndexRow] = []
    pixels = 0
    for source in index.sources:
        for number in range(*index.sizes([source])):
            row = index.row(source, number)
            size = sum(width * height for width, height in zip(row.widths, row.heights, strict=True))
            if rows and (pixels + size > CHUNK_PIXELS or len(rows) == CHUNK_SAMPLES):
                yield rows
                rows, pixels = [], 0
            rows.append(row)
            pixels += size
    if rows:
        yield rows


def main() -> None:
    """What each launched process does, see __main__.py."""
    from accelerate.state import PartialState

    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("config", "base", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--shards", type=Path, nargs="*", default=[])
    arguments = vars(parser.parse_args())
    shards = arguments.pop("shards")
    if launched_rank():
        logger.setLevel(logging.ERROR)
    state = PartialState(cpu=not torch.accelerator.is_available())
    try:
        files = EncodingFiles(**arguments)
        data = ExperimentOptions.load(files.config).data
        encode_shards(data, files, shards, state.device, state.process_index, state.num_processes)
    except (ValueError, OSError) as error:
        logger.error("Error: %s", error)
        raise SystemExit(MISTAKE) from None
    finally:
        state.destroy_process_group()

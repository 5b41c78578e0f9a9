"""Read the VAE posteriors and text features that encode.py has stored, bound to what they were made by."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors
import safetensors.torch
import torch

from omnitune.encoding.fingerprint import ENCODE, require_fingerprint
from omnitune.encoding.groups import group_path
from omnitune.errors import ConfigError
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.tars import TarReader

DROPPED = "dropped.safetensors"

ENCODED_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.int32()),
        ("key", pa.string()),
        ("tar", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("checksum", pa.uint32()),
        ("tar_bytes", pa.int64()),
        ("shard_sha256", pa.string()),  # of the shard's tar that was encoded
    ]
)


@dataclass(frozen=True)
class EncodedSample:
    """What is stored of a sample.

    Attributes:
        posteriors: (mean, standard deviation) of the latent of each input image, then of the output image; float32
            [C, H, W] each, before shift and scaling.
        text: [L, D] features of the instruction, without padding, float32.
        text_without_cliche: the same for the caption without its leading cliche; None where there is none to remove.
    """

    posteriors: list[tuple[torch.Tensor, torch.Tensor]]
    text: torch.Tensor
    text_without_cliche: torch.Tensor | None


def checksum(key: str, content: bytes) -> int:
    """CRC-32 of a member under its key: another sample's bytes do not pass for it."""
    return zlib.crc32(content, zlib.crc32(key.encode()))


@dataclass
class _Places:
    """Where the samples of one source lie, by row; arrays, as there may be many millions."""

    tars: list[str]
    tar: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    checksum: npt.NDArray[np.uint32]


class EncodedIndex:
    """The encoded samples of a data set, by source and row as in the index of its shards.

    Args:
        folder: prepared/{dataset}/encoded/{model}.
        fingerprint: what the encoding must have been made by; see `fingerprint_of`.
        index: of the shards that it must be an encoding of.
        sources: those to read.
        shards_per_encoding: consecutive shard numbers of a source that form a group.

    Raises:
        ConfigError: where something is missing, or is the encoding of other shards, weights or options.
        ValueError: where a tar is missing or has another size than when it was written.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Any],
        index: ShardIndex,
        sources: Sequence[str],
        shards_per_encoding: int,
    ) -> None:
        self.folder = Path(folder)
        require_fingerprint(self.folder / DROPPED, fingerprint)
        self.dropped = safetensors.torch.load_file(self.folder / DROPPED)["text"].float()
        self._tars = TarReader(self.folder, fix=ENCODE)
        self._places: dict[str, _Places] = {}
        for source in sources:
            rows = pa.Table.from_batches(index.parts(source)).select(["shard", "key", "tar_sha256"])
            self._places[source] = self._load(source, rows, fingerprint, shards_per_encoding)

    def _load(self, source: str, rows: pa.Table, fingerprint: dict[str, Any], per_group: int) -> _Places:
        """Reads the groups of a source and checks them against its rows of the index."""
        tables, start = [], 0
        for run in pc.value_counts(pc.divide(rows["shard"], per_group)).to_pylist():
            path = group_path(self.folder, source, run["values"])
            require_fingerprint(path, fingerprint)
            table = pq.read_table(path, read_dictionary=["tar"])
            _require_same_shards(path, table, rows.slice(start, run["counts"]))
            tables.append(table.select(["tar", "tar_bytes", "offset", "size", "checksum"]))
            start += run["counts"]
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        sizes = table.group_by("tar").aggregate([("tar_bytes", "max")]).to_pydict()
        self._tars.check(dict(zip(sizes["tar"], sizes["tar_bytes_max"], strict=True)))
        tar = table["tar"].combine_chunks()
        arrays = {name: table[name].to_numpy() for name in ("offset", "size", "checksum")}
        return _Places(tar.dictionary.to_pylist(), tar.indices.to_numpy(), **arrays)

    def read(self, source: str, number: int, key: str) -> EncodedSample:
        """A sample by its source and its row there, counted from 0.

        Raises:
            ValueError: naming tar, key and offset, where the tar ends early or holds other bytes than when it was
            written.
        """
        places = self._places[source]
        tar, offset = places.tars[places.tar[number]], int(places.offset[number])
        content = self._tars.read(tar, offset, int(places.size[number]), key)
        if checksum(key, content) != places.checksum[number]:
            raise ValueError(
                f"{self.folder / tar}: sample {key} at byte {offset} is not what was encoded. Delete the file. "
                f"{ENCODE}."
            )
        tensors = {name: tensor.float() for name, tensor in safetensors.torch.load(content).items()}
        names = [f"input_{k}" for k in range(len(tensors) // 2)]
        names = [*(name for name in names if f"{name}.mean" in tensors), "output"]
        posteriors = [(tensors[f"{name}.mean"], torch.exp(0.5 * tensors[f"{name}.logvar"])) for name in names]
        return EncodedSample(posteriors, tensors["text"], tensors.get("text_without_cliche"))

    def close(self) -> None:
        """Closes all tars; they are opened again when needed."""
        self._tars.close()


def _require_same_shards(path: Path, table: pa.Table, expected: pa.Table) -> None:
    """Raises ConfigError unless the rows of a group are those of the index, in order, encoded from the same tars."""
    asked, found = _hashes_by_shard(expected, "tar_sha256"), _hashes_by_shard(table, "shard_sha256")
    if asked.keys() != found.keys():
        raise ConfigError(
            f"{path}: holds the shards {_shard_names(found)}, but should hold {_shard_names(asked)} (the data or "
            f"data.shards_per_encoding have changed). {ENCODE}."
        )
    differing = [shard for shard in asked if asked[shard] != found[shard]]
    if differing:
        names = _shard_names(differing)
        raise ConfigError(
            f"{path}: the tars of the shards {names} are others now than when they were encoded. {ENCODE}."
        )
    if table.num_rows != expected.num_rows or not pc.all(pc.equal(table["key"], expected["key"])).as_py():
        raise ConfigError(f"{path}: its samples are not those of the index. Delete the file. {ENCODE}.")


def _hashes_by_shard(table: pa.Table, column: str) -> dict[int, str]:
    """The hash of each shard's tar, by number."""
    hashes = table.group_by("shard").aggregate([(column, "max")]).sort_by("shard").to_pydict()
    return dict(zip(hashes["shard"], hashes[f"{column}_max"], strict=True))


def _shard_names(shards: Iterable[int]) -> str:
    return ", ".join(f"{shard:05d}" for shard in shards)

"""Read training samples from shards by the index, in the order of the plan, from any step on."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from omnitune.config import ConfigError
from omnitune.data.images import load_rgb, to_tensor
from omnitune.data.plan import MixturePlan
from omnitune.data.sample import draw_condition

REBUILD = "Rebuild it: snakemake --cores 2 --forcerun shard_dataset index_dataset"
OPEN_TARS = 128  # per process; below the usual limit of 1024 open files, with several workers
CONDITION = 3  # tag of the random numbers for conditioning, beside those of the plan


@dataclass(frozen=True)
class IndexRow:
    """One sample's row of the index; lists hold the input images and, last, the output image."""

    source: str
    shard: int
    key: str
    task_type: str
    instruction: str
    tar: str
    json_offset: int
    json_size: int
    image_offsets: list[int]
    image_sizes: list[int]
    widths: list[int]
    heights: list[int]
    output_tokens: int
    input_tokens: int
    sha256: str
    tar_bytes: int
    tar_sha256: str


@dataclass
class Sample:
    """A training sample as drawn for one slot of one step.

    Attributes:
        key, source, task_type: as in the index.
        instruction: what the model is given; "" where the prompt was dropped.
        input_images: float32 [3, height, width] in [-1, 1] each; empty where the references were dropped.
        output_image: float32 [3, height, width] in [-1, 1].
        drop_prompt: whether the prompt was dropped; the text encoder then takes the short system prompt.
        slot: position in the global batch, from 0.
        step: from 0.
    """

    key: str
    source: str
    task_type: str
    instruction: str
    input_images: list[torch.Tensor]
    output_image: torch.Tensor
    drop_prompt: bool
    slot: int
    step: int


class ShardIndex:
    """The samples of all shards, by source and row, with random access to their bytes.

    Args:
        path: index.parquet; the tars lie beside it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.folder = self.path.parent
        try:
            table = pq.read_table(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{self.path}: cannot be read as an index ({error}). {REBUILD}.") from None
        names = sorted(pc.unique(table["source"]).to_pylist())
        self._tables = {name: table.filter(pc.equal(table["source"], name)).combine_chunks() for name in names}
        self._files: OrderedDict[str, int] = OrderedDict()

    @classmethod
    def load(cls, path: Path | str) -> "ShardIndex":
        """Reads an index; raises ConfigError where it cannot be read."""
        return cls(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardIndex, (self.path,)  # open files cannot be sent to a worker process, and the table need not be

    @property
    def sources(self) -> list[str]:
        """Names of the sources, sorted."""
        return list(self._tables)

    def __len__(self) -> int:
        return sum(table.num_rows for table in self._tables.values())

    def sizes(self, sources: Sequence[str]) -> list[int]:
        """Number of rows of each source; raises ConfigError for one that has none."""
        missing = [name for name in sources if name not in self._tables]
        if missing:
            raise ConfigError(
                f"{self.path}: has no samples of {', '.join(map(repr, missing))} (it has {', '.join(self.sources)}). "
                "Mixture and shards do not belong together. "
                "Prepare the data again: snakemake --cores 2 --forcerun validate_dataset."
            )
        return [self._tables[name].num_rows for name in sources]

    def row(self, source: str, number: int) -> IndexRow:
        """One row of a source, counted from 0."""
        return IndexRow(**self._tables[source].slice(number, 1).to_pylist()[0])

    def check_tars(self) -> None:
        """Raises ValueError where a tar is missing or has another size than when it was indexed."""
        for table in self._tables.values():
            tars = table.group_by("tar").aggregate([("tar_bytes", "max")]).to_pylist()
            for tar in sorted(tars, key=lambda entry: str(entry["tar"])):
                path, expected = self.folder / tar["tar"], tar["tar_bytes_max"]
                if not path.is_file():
                    raise ValueError(f"{path}: is missing. {REBUILD}.")
                size = path.stat().st_size
                if size != expected:
                    raise ValueError(f"{path}: has {size} bytes, but {expected} when it was indexed. {REBUILD}.")

    def read_images(self, row: IndexRow) -> list[bytes]:
        """The image files of a sample, inputs then output, checked against the index.

        Raises:
            ValueError: where the tar ends early or holds other bytes than when it was indexed.
        """
        places = zip([row.json_offset, *row.image_offsets], [row.json_size, *row.image_sizes], strict=True)
        contents = [self._read(row, offset, size) for offset, size in places]
        if hashlib.sha256(b"".join(contents)).hexdigest() != row.sha256:
            raise ValueError(
                f"{self.folder / row.tar}: sample {row.key} at byte {row.json_offset} is not what was indexed. {REBUILD}."
            )
        return contents[1:]

    def _read(self, row: IndexRow, offset: int, size: int) -> bytes:
        # pread has no position that processes could share, so files opened before a fork stay usable after it.
        data = os.pread(self._file(row.tar), size, offset)
        if len(data) != size:
            raise ValueError(
                f"{self.folder / row.tar}: ends early: sample {row.key} needs {size} bytes from byte {offset}, "
                f"there are {len(data)}. {REBUILD}."
            )
        return data

    def _file(self, tar: str) -> int:
        """Descriptor of an open tar; those unused for longest are closed beyond OPEN_TARS."""
        if tar not in self._files:
            try:
                self._files[tar] = os.open(self.folder / tar, os.O_RDONLY)
            except OSError as error:
                raise ValueError(f"{self.folder / tar}: cannot be opened ({error.strerror}). {REBUILD}.") from None
            if len(self._files) > OPEN_TARS:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(tar)
        return self._files[tar]

    def close(self) -> None:
        """Closes all tars; they are opened again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


class TrainingBatches(Dataset[list[Sample]]):
    """Microbatches of one process. Item (step, microbatch) is a list of `batch_size` samples.

    Process `rank` takes the slots rank * G / W .. (rank + 1) * G / W of the global batch G, in order, cut into
    `gradient_accumulation_steps` microbatches. What a sample is conditioned on depends on (seed, step, slot) alone.

    Args:
        index: the shards.
        plan: over `sources`, in the same order.
        sources: names of the sources in the order of the mixture.
        seed: of the conditioning.
        global_batch_size, batch_size, gradient_accumulation_steps, rank, world_size: how a step is cut.
        prompt_dropout_prob, ref_img_dropout_prob: see `draw_condition`.

    Raises:
        ConfigError: where the batch sizes do not fit, or a source has no rows.
    """

    def __init__(
        self,
        index: ShardIndex,
        plan: MixturePlan,
        sources: Sequence[str],
        *,
        seed: int,
        global_batch_size: int,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
        prompt_dropout_prob: float = 0.0,
        ref_img_dropout_prob: float = 0.0,
    ) -> None:
        if global_batch_size != batch_size * gradient_accumulation_steps * world_size:
            raise ConfigError(
                f"train.global_batch_size: {global_batch_size} is not allowed: batch_size {batch_size} x "
                f"gradient_accumulation_steps {gradient_accumulation_steps} x {world_size} processes = "
                f"{batch_size * gradient_accumulation_steps * world_size}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be 0 .. {world_size - 1}")
        if index.sizes(sources) != plan.sizes.tolist():
            raise ValueError(f"plan: sizes {plan.sizes.tolist()} are not those of the index, {index.sizes(sources)}")
        self.index = index
        self.plan = plan
        self.sources = list(sources)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.batch_size = batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rank = rank
        self.prompt_dropout_prob = prompt_dropout_prob
        self.ref_img_dropout_prob = ref_img_dropout_prob

    def slots(self, step: int, microbatch: int) -> list[tuple[int, IndexRow]]:
        """Slots of a microbatch and the samples that stand there, without reading any image."""
        if not 0 <= microbatch < self.gradient_accumulation_steps:
            raise IndexError(f"microbatch {microbatch} must be 0 .. {self.gradient_accumulation_steps - 1}")
        samples = self.plan.batch(step, self.global_batch_size)
        first = (self.rank * self.gradient_accumulation_steps + microbatch) * self.batch_size
        chosen = enumerate(samples[first : first + self.batch_size], start=first)
        return [(slot, self.index.row(self.sources[source], row)) for slot, (source, row) in chosen]

    def condition(self, row: IndexRow, step: int, slot: int) -> tuple[str, bool, bool]:
        """(instruction, drop_prompt, drop_references) of the sample in this slot of this step."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, CONDITION, step, slot])))
        return draw_condition(row.task_type, row.instruction, rng, self.prompt_dropout_prob, self.ref_img_dropout_prob)

    def __getitem__(self, item: tuple[int, int]) -> list[Sample]:
        step, microbatch = item
        return [self._sample(row, step, slot) for slot, row in self.slots(step, microbatch)]

    def _sample(self, row: IndexRow, step: int, slot: int) -> Sample:
        instruction, drop_prompt, drop_references = self.condition(row, step, slot)
        files = self.index.read_images(row)
        wanted = range(len(files) - 1, len(files)) if drop_references else range(len(files))
        images = [self._decode(row, position, files[position]) for position in wanted]
        return Sample(
            key=row.key,
            source=row.source,
            task_type=row.task_type,
            instruction=instruction,
            input_images=images[:-1],
            output_image=images[-1],
            drop_prompt=drop_prompt,
            slot=slot,
            step=step,
        )

    def _decode(self, row: IndexRow, position: int, data: bytes) -> torch.Tensor:
        where = (
            f"{self.index.folder / row.tar}: image {position} of sample {row.key} at byte {row.image_offsets[position]}"
        )
        try:
            image = load_rgb(data)
        except Exception as error:  # an image reader may raise anything on damaged bytes
            raise ValueError(f"{where} does not decode: {error}. {REBUILD}.") from None
        expected = (row.widths[position], row.heights[position])
        if image.size != expected:
            raise ValueError(f"{where} has {image.size} pixels, but {expected} in the index. {REBUILD}.")
        return to_tensor(image)


class _StepOrder(Sampler[tuple[int, int]]):
    """(step, microbatch) from a first step to the one before the last."""

    def __init__(self, first_step: int, last_step: int, microbatches: int) -> None:
        self.steps = range(first_step, last_step)
        self.microbatches = microbatches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, microbatch) for step in self.steps for microbatch in range(self.microbatches))

    def __len__(self) -> int:
        return len(self.steps) * self.microbatches


def _as_is(samples: list[Sample]) -> list[Sample]:
    return samples


def training_loader(
    batches: TrainingBatches, first_step: int, last_step: int, num_workers: int = 0
) -> DataLoader[list[Sample]]:
    """A loader of the microbatches of the steps first_step .. last_step - 1, in order.

    Starting in the middle costs nothing, as each microbatch is computed from its step alone.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=_StepOrder(first_step, last_step, batches.gradient_accumulation_steps),
        num_workers=num_workers,
        collate_fn=_as_is,
        generator=torch.Generator(),  # its own, as a loader draws a seed and must not move the trainer's numbers
    )

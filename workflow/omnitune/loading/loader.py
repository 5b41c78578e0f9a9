"""Load training samples in the order of the mixture, from any step on: from shards or what was encoded of them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from omnitune.distributed.stopping import die_with_parent
from omnitune.errors import ConfigError
from omnitune.loading.balance import deal, waste
from omnitune.loading.order import MixtureOrder
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import IndexRow
from omnitune.validation.row import draw_condition

if TYPE_CHECKING:
    from omnitune.encoding.read import EncodedIndex, EncodedSample

IntArray = npt.NDArray[np.int64]
CONDITION = 3  # tag of the random numbers for conditioning, beside those of the order


@dataclass
class Sample:
    """A training sample as drawn for one slot of one step.

    Attributes:
        key, source, task_type: as in the index.
        instruction: what the model is given; "" where the prompt was dropped.
        input_images: float32 [3, height, width] in [-1, 1] each; empty where the references were dropped.
        output_image: float32 [3, height, width] in [-1, 1]; None where the sample is `encoded`.
        drop_prompt: whether the prompt was dropped; the text encoder then takes the short system prompt.
        slot: position in the global batch, from 0.
        step: from 0.
        encoded: posteriors and text features instead of images; only the output's posterior where the references were
            dropped.
    """

    key: str
    source: str
    task_type: str
    instruction: str
    input_images: list[torch.Tensor]
    output_image: torch.Tensor | None
    drop_prompt: bool
    slot: int
    step: int
    encoded: "EncodedSample | None" = None


class TrainingBatches(Dataset[list[Sample]]):
    """Microbatches of one process. Item (step, microbatch) is a list of `batch_size` samples.

    The order says which sample stands in which slot of the global batch, and what a sample is conditioned on depends on
    (seed, step, slot) alone. Which process computes a slot, and in which microbatch, follows from the samples' numbers
    of tokens (see `deal`), so that no process waits for another with many more of them.

    Args:
        index: the shards.
        order: over `sources`, in the same order.
        sources: names of the sources in the order of the mixture.
        seed: of the conditioning.
        global_batch_size, batch_size, gradient_accumulation_steps, rank, world_size: how a step is cut.
        prompt_dropout_prob, ref_img_dropout_prob: see `draw_condition`.
        encoded: of the same shards; then no image is read.

    Raises:
        ConfigError: where the batch sizes do not fit, or a source has no rows.
    """

    def __init__(
        self,
        index: ShardIndex,
        order: MixtureOrder,
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
        encoded: "EncodedIndex | None" = None,
    ) -> None:
        if global_batch_size != batch_size * gradient_accumulation_steps * world_size:
            raise ConfigError(
                f"train.global_batch_size: {global_batch_size} is not allowed: batch_size {batch_size} x "
                f"gradient_accumulation_steps {gradient_accumulation_steps} x {world_size} processes = "
                f"{batch_size * gradient_accumulation_steps * world_size}."
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} must be 0 .. {world_size - 1}")
        if index.sizes(sources) != order.sizes.tolist():
            raise ValueError(f"order: sizes {order.sizes.tolist()} are not those of the index, {index.sizes(sources)}")
        self.index = index
        self.order = order
        self.sources = list(sources)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.batch_size = batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.rank = rank
        self.world_size = world_size
        self.prompt_dropout_prob = prompt_dropout_prob
        self.ref_img_dropout_prob = ref_img_dropout_prob
        self.encoded = encoded
        self._dealt: tuple[int, list[tuple[int, int]], IntArray] | None = None

    def slots(self, step: int, microbatch: int) -> list[tuple[int, int, IndexRow]]:
        """What this process computes in a microbatch, not read yet: (slot, number of its row in the source, row)."""
        if not 0 <= microbatch < self.gradient_accumulation_steps:
            raise IndexError(f"microbatch {microbatch} must be 0 .. {self.gradient_accumulation_steps - 1}")
        samples, dealt = self._deal(step)
        chosen = [(slot, *samples[slot]) for slot in dealt[microbatch, self.rank].tolist()]
        return [(slot, number, self.index.row(self.sources[source], number)) for slot, source, number in chosen]

    def _deal(self, step: int) -> tuple[list[tuple[int, int]], IntArray]:
        """The samples of a step by slot, and the slots [microbatch, process, ..]; those of the last step are kept."""
        if self._dealt is None or self._dealt[0] != step:
            samples = self.order.batch(step, self.global_batch_size)
            dealt = deal(self._tokens(samples), self.gradient_accumulation_steps, self.world_size)
            self._dealt = step, samples, dealt
        return self._dealt[1:]

    def _tokens(self, samples: list[tuple[int, int]]) -> IntArray:
        return np.asarray([self.index.tokens(self.sources[source], number) for source, number in samples])

    def waste(self, first_step: int, last_step: int) -> float:
        """Share of the tokens that could have been computed while processes waited, in the steps first .. last - 1."""
        waited = computed = 0
        for step in range(first_step, last_step):
            samples, dealt = self._deal(step)
            more, tokens = waste(self._tokens(samples), dealt)
            waited, computed = waited + more, computed + tokens
        return waited / (waited + computed)

    def condition(self, row: IndexRow, step: int, slot: int) -> tuple[str, bool, bool]:
        """(instruction, drop_prompt, drop_references) of the sample in this slot of this step."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, CONDITION, step, slot])))
        return draw_condition(row.task_type, row.instruction, rng, self.prompt_dropout_prob, self.ref_img_dropout_prob)

    def __getitem__(self, item: tuple[int, int]) -> list[Sample]:
        step, microbatch = item
        return [self._sample(row, number, step, slot) for slot, number, row in self.slots(step, microbatch)]

    def _sample(self, row: IndexRow, number: int, step: int, slot: int) -> Sample:
        instruction, drop_prompt, drop_references = self.condition(row, step, slot)
        images: list[torch.Tensor] = []
        encoded = None
        if self.encoded is None:
            images = self.index.images(row, output_only=drop_references)
        else:
            encoded = self.encoded.read(row.source, number, row.key)
            if drop_references:
                encoded = replace(encoded, posteriors=encoded.posteriors[-1:])
            if not drop_prompt and instruction != row.instruction:
                assert encoded.text_without_cliche is not None
                encoded = replace(encoded, text=encoded.text_without_cliche)
        return Sample(
            key=row.key,
            source=row.source,
            task_type=row.task_type,
            instruction=instruction,
            input_images=images[:-1],
            output_image=images[-1] if images else None,
            drop_prompt=drop_prompt,
            slot=slot,
            step=step,
            encoded=encoded,
        )


class _StepOrder(Sampler[tuple[int, int]]):
    """(step, microbatch) from a first step to the one before the last."""

    def __init__(self, first_step: int, last_step: int, microbatches: int) -> None:
        self.steps = range(first_step, last_step)
        self.microbatches = microbatches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, microbatch) for step in self.steps for microbatch in range(self.microbatches))

    def __len__(self) -> int:
        return len(self.steps) * self.microbatches


class _ErrorsAsValues(Dataset[list[Sample] | Exception]):
    """Hands over what a user can mend as a value, as a reader process would add a traceback to what it raises."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, item: tuple[int, int]) -> list[Sample] | Exception:
        try:
            return self.batches[item]
        except (ValueError, OSError) as error:
            return error


class _Loader(DataLoader[list[Sample]]):
    """Fetches each microbatch in a thread while the one before is computed, be it read here or by a worker."""

    def __iter__(self) -> Iterator[list[Sample]]:  # type: ignore[override]
        found = super().__iter__()
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            coming = reader.submit(next, found, None)
            while (samples := coming.result()) is not None:
                coming = reader.submit(next, found, None)
                if isinstance(samples, Exception):
                    raise samples
                yield samples


def _start_worker(number: int) -> None:
    """Of a reader process: a trainer that is killed must not leave it behind, as it shares the experiment's lock."""
    die_with_parent()


def _as_is(samples: list[Sample]) -> list[Sample]:
    return samples


def training_loader(
    batches: TrainingBatches, first_step: int, last_step: int, num_workers: int = 0
) -> DataLoader[list[Sample]]:
    """A loader of the microbatches of the steps first_step .. last_step - 1, in order; reader processes work ahead.

    Starting in the middle costs nothing, as each microbatch is computed from its step alone. Iterating raises what
    reading raises: ValueError for tars that are not what was indexed.
    """
    return _Loader(
        _ErrorsAsValues(batches),  # type: ignore[arg-type]
        batch_size=None,
        sampler=_StepOrder(first_step, last_step, batches.gradient_accumulation_steps),
        num_workers=num_workers,
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own, as a loader draws a seed and must not move the trainer's numbers
    )

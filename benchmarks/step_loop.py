"""What the training loop adds to forward, backward and optimizer of the same batches, and how long it waits for data.

Both sides include the conditioning of the batch (noise, times, draws from the posteriors), and run in one process in
turn, on models of their own. The bare loop neither clips nor checks nor logs. A last step, which saves, is left out.
"""

import copy
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from rich.table import Table

from benchmarks.encoding import encode_demo, options_of, prepare
from omnitune.config import ExperimentOptions
from omnitune.loading.loader import Sample
from omnitune.training import loop
from omnitune.training.flow_matching import image_tokens, latent_elements, training_times, velocity_errors
from omnitune.training.inputs import TrainingFiles
from omnitune.training.optimizer import build_optimizers

THREADS = 2
STEPS = 60
WARM_UP = 5


class TimedLoader:
    """A loader's batches; notes when each was asked for and when it came."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.asked: list[float] = []
        self.came: list[float] = []

    def __iter__(self) -> Iterator[list[Sample]]:
        batches = iter(self.loader)
        while True:
            self.asked.append(time.perf_counter())
            batch = next(batches, None)
            if batch is None:
                return
            self.came.append(time.perf_counter())
            yield batch


class SideBySide(loop.Trainer):
    """A training that takes each of its steps a second time, as a bare loop would, on a copy of the model.

    Args:
        bare: whether to do so.
    """

    def __init__(self, *args: Any, bare: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.copy = copy.deepcopy(self.model) if bare else None
        self.copy_optimizers = build_optimizers(self.copy, self.train, {}) if self.copy else []
        self.bare_seconds: list[float] = []

    def _step(self, step: int, microbatches: list[list[Sample]]) -> Any:
        first = step % 2 == 0
        if first:
            self._bare(microbatches)
        result = super()._step(step, microbatches)
        if not first:
            self._bare(microbatches)
        return result

    def _bare(self, microbatches: list[list[Sample]]) -> None:
        started = time.perf_counter()
        if self.copy:
            (samples,) = (self.data.conditioner(batch, self.options.seed) for batch in microbatches)
            draws = torch.stack([sample.draw for sample in samples if sample.draw is not None])
            tokens = torch.tensor([image_tokens(sample.target, self.patch_size) for sample in samples])
            times = training_times(draws, tokens, self.options.transport, int(tokens.max()))
            (velocity_errors(self.copy, samples, times).sum() / latent_elements(samples).sum()).backward()
            for optimizer in self.copy_optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self.bare_seconds.append(time.perf_counter() - started)


def train(folder: Path, options: ExperimentOptions, workers: int, bare: bool) -> list[tuple[float, float, float]]:
    """Seconds of each step after the first few: waiting for data, the rest of the loop's, the bare loop's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    keys = {"dataloader_num_workers": workers, "max_train_steps": STEPS}
    options = options.model_copy(update={"train": options.train.model_copy(update=keys)})
    paths = {"base": folder / "base", "transformer": folder / "base" / "transformer"}
    paths |= {"index": folder / "shards" / "index.parquet", "encoded": folder / "encoded"}
    files = TrainingFiles(folder / "options.yml", **paths, output=folder / f"workers-{workers}-{bare}")
    loaders = []

    def timed(*args: Any) -> TimedLoader:
        loaders.append(TimedLoader(real(*args)))
        return loaders[0]

    real = loop.training_loader
    with mock.patch.object(loop, "training_loader", timed):
        trainer = SideBySide(options, files, bare=bare)
        trainer.fit()
    asked, came = loaders[0].asked, loaders[0].came
    steps = zip(asked, came, asked[1:], trainer.bare_seconds, strict=False)
    return [(b - a, c - b - seconds, seconds) for a, b, c, seconds in steps][WARM_UP:]


def tables() -> list[Table]:
    """The loop's own share, and its wait for data read in the process or by a worker."""
    torch.set_num_threads(THREADS)
    logging.getLogger("omnitune").setLevel(logging.ERROR)
    title = f"Training loop on the demo's model and encoded data (medians of {STEPS} steps of 32, {THREADS} threads)"
    result = Table("what", "figure", title=title)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        prepare(folder)
        encode_demo(folder)
        options = options_of(folder)
        steps = train(folder, options, workers=0, bare=True)
        result.add_row("a step of the loop, without waiting for data", f"{median(own for _, own, _ in steps):.3f} s")
        result.add_row("a bare step", f"{median(bare for *_, bare in steps):.3f} s")
        result.add_row("loop to bare loop, median of the pairs", f"{median(own / bare for _, own, bare in steps):.3f}")
        for workers in (0, 1):
            steps = train(folder, options, workers, bare=False)
            waited, own = (median(part) for part in list(zip(*steps, strict=True))[:2])
            reader = "a worker" if workers else "the training process"
            result.add_row(f"wait for data, read by {reader}", f"{waited / (waited + own):.1%} of a step")
    return [result]

"""The training loop of one process; started by `omnitune.launching.launch` through `accelerate launch`."""

import logging
import math
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

import torch
import yaml
from torch import Tensor

from omnitune.checkpoints.average import average_of
from omnitune.checkpoints.identity import identity_of, require_same, stretched
from omnitune.checkpoints.save import CheckpointSaver, load_checkpoint
from omnitune.checkpoints.states import (
    TrainerState,
    find_resumable,
    list_checkpoints,
    read_state,
    remove_leftovers,
    require_steps,
    step_of,
)
from omnitune.config import ExperimentOptions, require_processes
from omnitune.config.experiment.options import without_meaning
from omnitune.console import Progress
from omnitune.distributed import parallel
from omnitune.distributed.layout import Layout
from omnitune.distributed.parallel import COMPUTE_DTYPES, SharedError, together
from omnitune.distributed.processes import MISTAKE, is_first_of_node, launched_rank
from omnitune.distributed.stopping import PEER_LOST, StopRequest, die_with_parent
from omnitune.errors import reason_of
from omnitune.flops import PIXELS_PER_TOKEN, ModelFlops
from omnitune.io.files import sha256_of, write_json, write_text
from omnitune.loading.loader import Sample, training_loader
from omnitune.loading.mixture_report import mixture_report
from omnitune.paths import STATE_FILE
from omnitune.pretrained.weights import check_weights
from omnitune.training.data import open_data, shared_facts
from omnitune.training.flow_matching import (
    BINS,
    Conditioned,
    image_tokens,
    latent_elements,
    loss_weights,
    sample_tokens,
    time_bins,
    training_times,
    velocity_errors,
)
from omnitune.training.heldout import Validation, due
from omnitune.training.inputs import TrainingFiles, lock_experiment, parse_arguments
from omnitune.training.log import MetricsLog, check_trackers, note_start
from omnitune.training.model import build_model
from omnitune.training.nonfinite import NonFinite
from omnitune.training.optimizer import (
    LossScale,
    build_optimizers,
    check_optimizer,
    clear_gradients,
    update,
)
from omnitune.training.schedules import learning_rate_schedule, never_reached
from omnitune.training.timing import StepClock, device_peak, peak_memory_mb
from omnitune.training.totals import StepTotals

logger = logging.getLogger("omnitune")

WASTE_STEPS = 200  # the first ones, from which train.json says how much processes wait for each other
PEER_LOST_SECONDS = 2  # so that a process that knows why is the first to end
ONE_PROCESS = Layout("single", 1, 1)


class Trainer:
    """One process of a training: setup, then `fit`.

    Args:
        options: of the experiment.
        files: what is read and written.
        layout: how processes share the work; as the launcher decided.
        stop: says when to save and leave.
    """

    def __init__(
        self,
        options: ExperimentOptions,
        files: TrainingFiles,
        layout: Layout = ONE_PROCESS,
        *,
        stop: StopRequest | None = None,
    ) -> None:
        self.options, self.train, self.files, self.layout = options, options.train, files, layout
        self.stop = stop
        self.accelerator = parallel.build_accelerator(self.train, layout)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        with together():
            parallel.check_engaged(self.accelerator, layout)
            require_processes(options, layout.world_size, "options")
            check_trackers(options)
            check_optimizer(self.train)
            self._lock = lock_experiment(files.output) if self.main else None
            self.identity = identity_of(options, files.base, files.transformer, files.index)
        parallel.require_agreement(shared_facts(options, self.identity, layout))
        torch.backends.cuda.matmul.allow_tf32 = self.train.allow_tf32
        torch.backends.cudnn.benchmark = self.train.benchmark_cudnn
        self._setup_model()
        with together():
            self.data = open_data(options, files, self.accelerator)
            self.validation = self._setup_validation()
        self.clock = StepClock(self.device)

    def _setup_model(self) -> None:
        with together():
            check_weights(self.files.weights(self.options), self.accelerator.process_index, self.layout.world_size)
        with together():
            trained = build_model(self.options, self.files.transformer, self.device)
        self.patch_size = trained.model.config.patch_size
        self.flops = ModelFlops(trained.model)
        self.peak = device_peak(self.device, COMPUTE_DTYPES[self.train.mixed_precision])
        self.lora, self.dropout = trained.lora, trained.dropout
        self.model, self.sharding = parallel.prepare(self.accelerator, trained.model, self.layout)
        self.optimizers = build_optimizers(self.model, self.train, trained.learning_rates)
        self.learning_rate = learning_rate_schedule(self.train)
        self.average = average_of(self.model, self.train.ema_decay)
        self.loss_scale = LossScale(self.train.mixed_precision == "fp16")
        self.nonfinite = NonFinite(self.train.max_nonfinite_steps)
        self.saver = CheckpointSaver(
            self.files.output,
            self.model,
            self.optimizers,
            self.average,
            background=self.train.async_checkpoint,
            limit=self.options.logger.checkpoints_total_limit,
            keep=set(self.options.evaluated_steps),
        )
        logger.info("training with %s, mixed precision %s", self.sharding, self.train.mixed_precision)

    def _setup_validation(self) -> Validation | None:
        val = self.options.val
        if val.data_path is None or not (val.validation_steps or val.train_visualization_steps):
            return None
        rank, count = self.accelerator.process_index, self.accelerator.num_processes
        return Validation(self.options, self.files.base, self.device, rank, count)

    def fit(self) -> bool:
        """Trains up to max_train_steps, from the newest checkpoint if there is one, and writes train.json.

        Returns:
            False where it was asked to stop before: a checkpoint is there to go on from, and no train.json.
        """
        for line in (*without_meaning(self.options), *never_reached(self.options)) if self.main else ():
            logger.warning("Note: %s", line)
        done, last = self._start(), self.train.max_train_steps
        with together():
            metrics = MetricsLog(self.options, self.files.output / "logs", done + 1) if self.main else None
            if self.main:
                note_start(self.files.output / "logs", done + 1, self.device, self.layout.world_size)
        if self.validation and done == 0 and self.options.val.train_visualization_steps:
            self._draw(0, metrics)
        with self._progress(done) as bar:
            finished = self._take_steps(done, last, metrics, bar)
        if metrics:
            metrics.close()
        if finished:
            with together():
                if self.main:
                    require_steps(self.files.output, self.options.evaluated_steps)
                    write_json(self.files.output / "train.json", self._manifest())
                    logger.info("training %s is done, all %d steps", self.options.name, last)
        return finished

    def _take_steps(self, done: int, last: int, metrics: MetricsLog | None, bar: Progress | None) -> bool:
        """All steps after the `done` first ones, up to `last`; False where asked to stop before, and saved."""
        microbatches = iter(training_loader(self.data.batches, done, last, self.train.dataloader_num_workers))
        stopping = False
        for step in range(done, last):
            if self.stop:
                self.stop.defer()
            self.clock.start()
            with self.clock.part("data", on_device=False):
                samples = [next(microbatches) for _ in range(self.train.gradient_accumulation_steps)]
            row, totals = self._step(step, samples)
            stopping = totals.stopping > 0 and step + 1 < last
            self._save(step + 1, stopping)
            row |= self._speed(totals)
            if metrics and bar:
                metrics.write(row)
                bar.advance(1, _summary(row))
            if stopping or not self.saver.background:
                self.saver.complete()  # only now, so that no checkpoint is ahead of the log
            if stopping:
                logger.info("stopped after step %d of %d; the next start goes on from there", step + 1, last)
                break
            self._validate(step + 1, metrics)
        self.saver.complete()
        return not stopping

    def _step(self, step: int, microbatches: list[list[Sample]]) -> tuple[dict[str, Any], StepTotals]:
        """One optimizer step over the global batch; returns its figures, and what all processes have put into it."""
        with self.clock.part("data"):
            conditioned = [self.data.conditioner(samples, self.options.seed) for samples in microbatches]
        totals = self._totals(conditioned).over_processes(self.device)
        if self.saver.pending and totals.written == self.layout.world_size:
            self.saver.complete()  # waits for no one, and every process knows it
        figures = torch.zeros(2, BINS, device=self.device)
        self.nonfinite.start_step()
        for number, samples in enumerate(conditioned):
            with parallel.gradient_synchronisation(self.model, number == len(conditioned) - 1):
                figures += self._backward(samples, totals.elements)
        with self.clock.part("optimizer"):
            row = self._update(step, figures)
        return {"step": step + 1, **row, "tokens": int(totals.tokens)}, totals

    def _totals(self, conditioned: list[list[Conditioned]]) -> StepTotals:
        """Of this process alone."""
        tokens = [sample_tokens(sample, self.patch_size) for samples in conditioned for sample in samples]
        return StepTotals(
            elements=sum(float(latent_elements(samples).sum()) for samples in conditioned),
            tokens=sum(sample.total for sample in tokens),
            flops=self.flops.training(tokens) if self.peak else 0,
            stopping=self.stop is not None and self.stop.requested,
            written=self.saver.written,
        )

    def _backward(self, samples: list[Conditioned], global_elements: float) -> Tensor:
        """Forward and backward of one microbatch; returns squared errors and elements by bin of time, [2, BINS].

        The loss is the squared error over the global batch divided by its number of latent elements. Processes'
        gradients are averaged, hence the factor.
        """
        draws = torch.stack([sample.draw for sample in samples if sample.draw is not None])
        tokens = torch.tensor([image_tokens(sample.target, self.patch_size) for sample in samples])
        limit = self.options.data.max_output_pixels // PIXELS_PER_TOKEN
        times = training_times(draws, tokens, self.options.transport, limit).to(self.device)
        if self.dropout:
            self.dropout.set(torch.tensor([sample.seed for sample in samples]))
        with self.clock.part("forward"), self._autocast():
            errors = velocity_errors(self.model, samples, times)
        weighted = (errors * loss_weights(times, self.options.transport)).sum()
        with self.clock.part("backward"):
            (weighted * (self.layout.world_size * self.loss_scale.value / global_elements)).backward()
        figures = torch.zeros(2, BINS, device=self.device)
        bins = time_bins(times)
        figures[0].index_add_(0, bins, errors.detach())
        figures[1].index_add_(0, bins, latent_elements(samples).to(self.device))
        self.nonfinite.note(samples, errors.detach())
        return figures

    def _update(self, step: int, figures: Tensor) -> dict[str, Any]:
        """Clips the gradients and takes the step, or skips it where loss or gradients are not finite."""
        grad_norm = float(parallel.gradient_norm(self.model)) / self.loss_scale.value
        squares, counts = parallel.sum_over_processes(figures).tolist()
        loss = sum(squares) / sum(counts)
        learning_rate = self.learning_rate(step)
        row = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "loss_by_timestep": [s / c if c else None for s, c in zip(squares, counts, strict=True)],
        }
        if math.isfinite(loss + grad_norm):
            clip = min(1.0, self.train.max_grad_norm / (grad_norm + 1e-6)) / self.loss_scale.value
            if clip != 1.0:
                parallel.scale_gradients(self.model, clip)
            update(self.optimizers, learning_rate)
            if self.average:
                self.average.update()
            self.loss_scale.succeeded()
            self.nonfinite.finite()
        else:
            row["skipped"] = True
            if math.isfinite(loss) and self.loss_scale.overflowed():
                self.nonfinite.overflowed()
            else:
                self.nonfinite.skipped(step + 1, loss, grad_norm, learning_rate)
        clear_gradients(self.optimizers)
        return row

    def _save(self, step: int, stopping: bool) -> None:
        """Saves, or starts to, where a checkpoint is scheduled after this step or training stops with it."""
        scheduled = step in self.options.checkpoint_steps
        if scheduled or stopping:
            with self.clock.part("save", on_device=False):
                running = self.loss_scale.state() | self.nonfinite.state()
                self.saver.save(TrainerState(step, self.identity, self.lora, scheduled, running))

    def _speed(self, totals: StepTotals) -> dict[str, float]:
        """Seconds of the step and its parts, rates over all processes, and this process's memory."""
        seconds, parts = self.clock.finish()
        mfu = {"mfu": round(totals.flops / (seconds * self.peak * self.layout.world_size), 4)} if self.peak else {}
        return {
            "seconds": round(seconds, 4),
            **{f"{name}_seconds": round(value, 4) for name, value in parts.items()},
            "samples_per_second": round(self.train.global_batch_size / seconds, 2),
            "tokens_per_second": round(int(totals.tokens) / seconds, 1),
            "memory_mb": round(peak_memory_mb(self.device), 1),
            **mfu,
        }

    def _validate(self, step: int, metrics: MetricsLog | None) -> None:
        """Held-out loss, in a row of its own, and images, where they are due; every process takes part."""
        if self.validation is None:
            return
        val, last = self.options.val, self.train.max_train_steps
        if due(step, val.validation_steps, last):
            row = self.validation.losses(self.model, self._autocast())
            if metrics:
                metrics.write({"step": step, **row})
            logger.info("step %d: held-out loss %.4f", step, row["val_loss"])
        if due(step, val.train_visualization_steps, last):
            self._draw(step, metrics)

    def _draw(self, step: int, metrics: MetricsLog | None) -> None:
        """Draws the images of held-out prompts, those of step 0 with the weights that training starts from."""
        assert self.validation is not None
        images = self.validation.draw(self.model, self._autocast(), self.files.output / "logs" / "samples", step)
        if metrics:
            metrics.write_images(step, images)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.train.mixed_precision == "no":
            return nullcontext()
        return torch.autocast(self.device.type, COMPUTE_DTYPES[self.train.mixed_precision])

    def _start(self) -> int:
        """Makes the folder ready and loads the checkpoint to go on from; returns the number of steps done."""
        folder, found = self.files.output, None
        with together():
            if self.main:
                remove_leftovers(folder)
                same = require_same(self.options, self.identity, folder, str(self.files.config))
                another = stretched(self.options, folder)
                found = find_resumable(folder, self.train.max_train_steps, same)
                if another and found:
                    logger.warning(another)
                (folder / "train.json").unlink(missing_ok=True)
                text = yaml.safe_dump(self.options.model_dump(mode="json"), sort_keys=False)
                write_text(folder / "options.yml", text)
        found = parallel.gather(found)[0]
        if found is None:
            return 0
        logger.info(
            "going on from %s, the next step at a learning rate of %g", found, self.learning_rate(step_of(found))
        )
        with together():
            state = read_state(found)
        load_checkpoint(found, self.model, self.optimizers, self.average)
        self.loss_scale.load(state.running)
        self.nonfinite.load(state.running)
        return state.step

    def _progress(self, done: int) -> AbstractContextManager[Progress | None]:
        """The bar of all steps, which the first process draws."""
        return (
            Progress(f"train {self.options.name}", self.train.max_train_steps, "steps", done)
            if self.main
            else nullcontext()
        )

    def _manifest(self) -> dict[str, Any]:
        last, data = self.train.max_train_steps, self.data
        saved = {step: path for step, path in list_checkpoints(self.files.output).items() if step <= last}
        return {
            "experiment": self.options.name,
            "final_step": last,
            "checkpoints": list(saved),
            "states": {step: sha256_of(path / STATE_FILE) for step, path in saved.items()},
            "strategy": self.layout.strategy,
            "strategy_reason": self.layout.reason,
            "world_size": self.layout.world_size,
            "parameters": self.sharding.parameters,
            "trainable_parameters": self.sharding.trainable,
            "skipped_steps": self.nonfinite.total,
            "waste": round(data.batches.waste(0, min(last, WASTE_STEPS)), 4),
            "mixture": mixture_report(data.plan, data.index, data.sources, last, self.train.global_batch_size),
            "identity": self.identity,
        }


def _summary(row: dict[str, Any]) -> str:
    loss = "skipped" if row.get("skipped") else f"loss {row['loss']:.4f}"
    return f"{loss}, {row['samples_per_second']:.1f} samples/s"


def main() -> None:
    """What each launched process does, see __main__.py."""
    die_with_parent()
    stop = StopRequest()
    files, layout = parse_arguments(__doc__)
    threading.excepthook = _thread_failed
    if launched_rank():
        logger.setLevel(logging.ERROR)
    try:
        options = ExperimentOptions.load(files.config)
        Trainer(options, files, layout, stop=stop).fit()
    except (ValueError, OSError) as error:
        if is_first_of_node() or not isinstance(error, SharedError):
            logger.error("Error: %s", error)
        _leave(MISTAKE)
    except RuntimeError as error:
        if not parallel.is_connection_error(error):
            raise
        logger.error("process %d lost the others: %s", launched_rank(), reason_of(error))
        time.sleep(PEER_LOST_SECONDS)
        _leave(PEER_LOST)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _leave(0)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread of a library has ended: TensorBoard's, where the disk is full. Others keep their traceback."""
    if isinstance(failure.exc_value, OSError):
        logger.error("a log cannot be written any more: %s", failure.exc_value)
    else:
        threading.__excepthook__(failure)


def _leave(code: int) -> NoReturn:
    """Ends this process at once: threads may wait for processes that are gone, and Python's own end takes 2 s."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)

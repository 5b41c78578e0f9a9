"""The training loop of one process; started by `omnitune.training.launch` through `accelerate launch`."""

import argparse
import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from omnitune.config import ExperimentOptions, require_processes
from omnitune.console import Progress, setup_logging
from omnitune.data.drawn import mixture_report
from omnitune.data.encoded import EncodedIndex, fingerprint_of
from omnitune.data.index import ShardIndex
from omnitune.data.loader import Sample, TrainingBatches, training_loader
from omnitune.data.mixture import Source, read_mixture
from omnitune.data.plan import MixturePlan
from omnitune.files import sha256_of, write_json, write_text
from omnitune.launcher import die_with_parent, launched_rank
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.components import MANIFEST
from omnitune.models.encoder import FrozenEncoder, latent_scaling
from omnitune.models.lora import lora_config
from omnitune.training import checkpoint as checkpoints
from omnitune.training import parallel
from omnitune.training.conditioning import Conditioner
from omnitune.training.flow_matching import (
    BINS,
    Conditioned,
    image_tokens,
    latent_elements,
    sample_tokens,
    time_bins,
    training_times,
    velocity_errors,
)
from omnitune.training.launch import TrainingFiles, lock_experiment
from omnitune.training.metrics import MetricsLog, check_trackers
from omnitune.training.optimizer import build_optimizer, learning_rate_schedule

logger = logging.getLogger("omnitune")

PIXELS_PER_TOKEN = 16 * 16
WASTE_STEPS = 200  # the first ones, from which train.json says how much processes wait for each other
VAE_BATCH_PIXELS = 1024 * 1024  # that go through the VAE at once, beside the model in training


def identity_of(options: ExperimentOptions, files: TrainingFiles) -> dict[str, Any]:
    """What the weights are a function of, and checkpoints therefore bound to: options, starting weights, data."""
    manifest = files.transformer / "conversion.json"
    weights = sorted((f.name, f.stat().st_size) for f in files.transformer.glob("*.safetensors"))
    start = sha256_of(manifest) if manifest.is_file() else [list(item) for item in weights]
    base = files.base / MANIFEST
    mixture = {source.name: source.ratio for source in read_mixture(options.data.data_path)}
    data = {"index": sha256_of(files.index), "mixture": mixture}
    base_weights = sha256_of(base) if base.is_file() else None
    return {"options": options.identity, "base": base_weights, "starting_weights": start, "data": data}


class Trainer:
    """One process of a training: setup, then `fit`."""

    def __init__(self, options: ExperimentOptions, files: TrainingFiles) -> None:
        self.options, self.train, self.files = options, options.train, files
        self.accelerator = parallel.build_accelerator(self.train.mixed_precision)
        self.device = self.accelerator.device
        self.main = self.accelerator.is_main_process
        require_processes(self.options, self.accelerator.num_processes, "options")
        check_trackers(self.options)
        torch.backends.cuda.matmul.allow_tf32 = self.train.allow_tf32
        self.identity = identity_of(options, files)
        self._setup_model()
        self._setup_data()

    def _setup_model(self) -> None:
        torch.manual_seed(self.options.seed)  # adapters start equal on every process
        model = OmniGen2Transformer2DModel.from_pretrained(self.files.transformer, torch_dtype=torch.float32)
        check_architecture(model, self.options, self.files.transformer)
        self.patch_size = model.config.patch_size
        self.lora: dict[str, Any] | None = None
        if self.train.lora_ft:
            model.requires_grad_(False)
            config = lora_config(self.train.lora_rank, self.train.lora_alpha, self.train.lora_dropout)
            model.add_adapter(config)
            targets = sorted(config.target_modules or ())
            self.lora = {"rank": config.r, "alpha": config.lora_alpha, "target_modules": targets}
        if self.train.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        optimizer = build_optimizer((p for p in model.parameters() if p.requires_grad), self.train)
        self.model, self.optimizer, self.sharding = parallel.prepare(self.accelerator, model, optimizer)
        self.learning_rate = learning_rate_schedule(self.train)
        logger.info("training with %s, mixed precision %s", self.sharding, self.train.mixed_precision)

    def _setup_data(self) -> None:
        data = self.options.data
        self.index = open_index(self.options, self.files.index)
        self.sources: list[Source] = read_mixture(data.data_path)
        names = [source.name for source in self.sources]
        encoded = self._open_encoded(names) if data.encode else None
        if encoded is None and self.accelerator.is_local_main_process:
            self.index.check_tars()  # a request for each tar where they lie at URLs: once per node
        self.plan = MixturePlan(self.index.sizes(names), [source.ratio for source in self.sources], self.options.seed)
        self.batches = TrainingBatches(
            self.index,
            self.plan,
            names,
            seed=self.options.seed,
            global_batch_size=self.train.global_batch_size,
            batch_size=self.train.batch_size,
            gradient_accumulation_steps=self.train.gradient_accumulation_steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            prompt_dropout_prob=data.prompt_dropout_prob,
            ref_img_dropout_prob=data.ref_img_dropout_prob,
            encoded=encoded,
        )
        self.conditioner = Conditioner(
            self._frozen_encoder() if encoded is None else encoded,
            self.device,
            scaling=latent_scaling(self.files.base),
            snr_type=self.options.transport.snr_type,
        )

    def _open_encoded(self, sources: list[str]) -> EncodedIndex:
        data = self.options.data
        fingerprint = fingerprint_of(self.files.base, data)
        return EncodedIndex(self.files.encoded, fingerprint, self.index, sources, data.shards_per_encoding)

    def _frozen_encoder(self) -> FrozenEncoder:
        return FrozenEncoder(
            self.files.base,
            self.device,
            text_dtype=torch.bfloat16 if self.train.mixed_precision == "bf16" else torch.float32,
            max_text_tokens=self.options.data.maximum_text_tokens,
            use_chat_template=self.options.data.use_chat_template,
            batch_pixels=VAE_BATCH_PIXELS,
        )

    def fit(self) -> None:
        """Trains up to max_train_steps, from the newest checkpoint if there is one, and writes train.json."""
        done = self._resume()
        last = self.train.max_train_steps
        if self.main:
            (self.files.output / "train.json").unlink(missing_ok=True)
            text = yaml.safe_dump(self.options.model_dump(mode="json"), sort_keys=False)
            write_text(self.files.output / "options.yml", text)
        self._fit(done, last)
        if self.main:
            write_json(self.files.output / "train.json", self._manifest())

    def _fit(self, done: int, last: int) -> None:
        metrics = MetricsLog(self.options, self.files.output / "logs", done + 1) if self.main else None
        loader = training_loader(self.batches, done, last, self.train.dataloader_num_workers)
        microbatches = iter(loader)
        progress = Progress(f"train {self.options.name}", last, "steps", done) if self.main else nullcontext()
        with progress as bar:
            for step in range(done, last):
                started = time.perf_counter()
                samples = [next(microbatches) for _ in range(self.train.gradient_accumulation_steps)]
                waited = time.perf_counter() - started
                row = self._step(step, samples)
                seconds = time.perf_counter() - started
                rate = self.train.global_batch_size / seconds
                row |= {
                    "seconds": round(seconds, 4),
                    "data_seconds": round(waited, 4),
                    "samples_per_second": round(rate, 2),
                }
                if metrics and isinstance(bar, Progress):
                    metrics.write(row)
                    bar.advance(1, f"loss {row['loss']:.4f}, {rate:.1f} samples/s")
                if step + 1 in self.options.checkpoint_steps:
                    self._save(step + 1)
        if metrics:
            metrics.close()

    def _step(self, step: int, microbatches: list[list[Sample]]) -> dict[str, Any]:
        """One optimizer step over the global batch; returns its figures."""
        # Draws outside of samples' generators (LoRA dropout) must not depend on what ran before a restart.
        draws = self.options.seed * 1_000_003 + step * 1009 + self.accelerator.process_index
        torch.manual_seed(draws % 2**63)
        conditioned = [self.conditioner(samples, self.options.seed) for samples in microbatches]
        elements = sum(float(latent_elements(samples).sum()) for samples in conditioned)
        tokens = sum(sample_tokens(sample, self.patch_size) for samples in conditioned for sample in samples)
        totals = torch.tensor([elements, tokens], dtype=torch.float64, device=self.device)
        global_elements, global_tokens = parallel.sum_over_processes(totals).tolist()
        figures = torch.zeros(2, BINS, device=self.device)
        for number, samples in enumerate(conditioned):
            self._synchronise_gradients(number == len(conditioned) - 1)
            figures += self._backward(samples, global_elements)
        grad_norm = parallel.clip_gradients(self.model, self.train.max_grad_norm)
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        squares, counts = parallel.sum_over_processes(figures).tolist()
        loss = sum(squares) / sum(counts)
        if not math.isfinite(loss + grad_norm):
            raise ValueError(
                f"step {step + 1}: loss {loss}, gradient norm {grad_norm}. The training diverged and stops; its earlier "
                f"checkpoints are whole. Lower train.learning_rate (now {learning_rate:g}) or train.max_grad_norm."
            )
        return {
            "step": step + 1,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "tokens": int(global_tokens),
            "loss_by_timestep": [s / c if c else None for s, c in zip(squares, counts, strict=True)],
        }

    def _backward(self, samples: list[Conditioned], global_elements: float) -> Tensor:
        """Forward and backward of one microbatch; returns squared errors and elements by bin of time, [2, BINS].

        The loss is the squared error over the global batch divided by its number of latent elements. Processes'
        gradients are averaged, hence the factor.
        """
        draws = torch.stack([sample.draw for sample in samples if sample.draw is not None])
        tokens = torch.tensor([image_tokens(sample.target, self.patch_size) for sample in samples])
        limit = self.options.data.max_output_pixels // PIXELS_PER_TOKEN
        times = training_times(draws, tokens, self.options.transport, limit).to(self.device)
        with self._autocast():
            errors = velocity_errors(self.model, samples, times)
        loss = errors.sum() * self.accelerator.num_processes / global_elements
        loss.backward()
        figures = torch.zeros(2, BINS, device=self.device)
        bins = time_bins(times)
        figures[0].index_add_(0, bins, errors.detach())
        figures[1].index_add_(0, bins, latent_elements(samples).to(self.device))
        return figures

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.train.mixed_precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def _synchronise_gradients(self, enabled: bool) -> None:
        if self.sharding.strategy == "fsdp":
            self.model.set_requires_gradient_sync(enabled)  # type: ignore[operator]

    def _resume(self) -> int:
        """Steps already done."""
        folder = self.files.output
        found: Path | None = None
        if self.main:
            checkpoints.remove_leftovers(folder)
            resume = self.options.resume_from_checkpoint is not None
            found = checkpoints.find_resumable(folder, self.identity, self.train.max_train_steps, resume)
        checkpoints.barrier()
        found_step = torch.tensor(checkpoints.read_state(found).step if found else 0, device=self.device)
        step = int(parallel.sum_over_processes(found_step))
        if step:
            logger.info("going on from %s", folder / f"checkpoint-{step}")
            checkpoints.load_checkpoint(folder / f"checkpoint-{step}", self.model, self.optimizer)
        return step

    def _save(self, step: int) -> None:
        state = checkpoints.TrainerState(step, self.identity, self.lora)
        checkpoints.save_checkpoint(self.files.output, self.model, self.optimizer, state)
        if self.main:
            limit = self.options.logger.checkpoints_total_limit
            checkpoints.limit_checkpoints(self.files.output, limit, set(self.options.evaluated_steps))
        checkpoints.barrier()

    def _manifest(self) -> dict[str, Any]:
        last = self.train.max_train_steps
        return {
            "experiment": self.options.name,
            "final_step": last,
            "checkpoints": [step for step in checkpoints.list_checkpoints(self.files.output) if step <= last],
            "strategy": self.sharding.strategy,
            "world_size": self.sharding.world_size,
            "parameters": self.sharding.parameters,
            "trainable_parameters": self.sharding.trainable,
            "waste": round(self.batches.waste(0, min(last, WASTE_STEPS)), 4),
            "mixture": mixture_report(self.plan, self.index, self.sources, last, self.train.global_batch_size),
            "identity": self.identity,
        }


def open_index(options: ExperimentOptions, path: Path) -> ShardIndex:
    """The index of the shards, with the disk cache for those at URLs."""
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else Path.home() / ".cache" / "omnitune"
    return ShardIndex.load(path, cache=cache / "shards", cache_bytes=options.data.url_cache_mb * 1_000_000)


def check_architecture(model: nn.Module, options: ExperimentOptions, folder: Path) -> None:
    """Raises ValueError if the weights have another architecture than model.arch_opt says."""
    if options.model.arch_opt is None:
        return
    config = dict(model.config)  # type: ignore[arg-type]
    lines = []
    for key, asked in options.model.arch_opt.model_dump().items():
        found = config.get(key)
        if (tuple(found) if isinstance(found, list) else found) != asked:
            lines.append(f"model.arch_opt.{key}: {asked!r} is not what the weights have: {found!r}")
    if lines:
        raise ValueError("\n  - ".join([f"{folder / 'config.json'} does not fit the options:", *lines]))


def main() -> None:
    """Entry point of each launched process."""
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__)
    for field in fields(TrainingFiles):
        parser.add_argument(f"--{field.name}", type=Path, required=True)
    files = TrainingFiles(**vars(parser.parse_args()))
    options = ExperimentOptions.load(files.config)
    rank = launched_rank()
    setup_logging()
    if rank:
        logger.setLevel(logging.ERROR)
    try:
        held = lock_experiment(files.output) if rank == 0 else None
        Trainer(options, files).fit()
        del held
    except (ValueError, OSError) as error:
        logger.error("Error: %s", error)
        raise SystemExit(1) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

"""The data that a training reads, and what its processes must agree in."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from omnitune.config import ExperimentOptions
from omnitune.config.mixtures.sources import Source, sources_of
from omnitune.distributed.layout import Layout
from omnitune.encoding.fingerprint import fingerprint_of
from omnitune.encoding.read import EncodedIndex
from omnitune.loading.loader import TrainingBatches
from omnitune.loading.order import MixtureOrder
from omnitune.models.encoder import FrozenEncoder, latent_scaling
from omnitune.sharding.index import ShardIndex
from omnitune.training.conditioning import Conditioner
from omnitune.training.inputs import TrainingFiles

PACKAGES = ("omnitune", "torch", "accelerate", "peft", "diffusers")  # of which all processes must have one version
VAE_BATCH_PIXELS = 1024 * 1024  # that go through the VAE at once, beside the model in training


def shared_facts(options: ExperimentOptions, identity: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """What all processes of a training must agree in: one entry for each option and each package."""
    versions = {f"version of {name}": importlib.metadata.version(name) for name in PACKAGES}
    layouts = {"strategy": layout.strategy, "processes": layout.world_size, "processes per replica": layout.shard_size}
    options_found = options.model_dump(mode="json", exclude={"cache_dir"})
    return {**versions, **layouts, **_flat(options_found, ""), **_flat(identity, "identity.")}


def _flat(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@dataclass(frozen=True)
class TrainingData:
    """The samples of a training: their index, sources and plan, this process's batches, what makes latents of them."""

    index: ShardIndex
    sources: list[Source]
    plan: MixtureOrder
    batches: TrainingBatches
    conditioner: Conditioner


def open_data(options: ExperimentOptions, files: TrainingFiles, accelerator: Accelerator) -> TrainingData:
    """Opens index and shards, or encodings; raises ValueError for what is missing or does not fit."""
    data, train = options.data, options.train
    index = open_index(options, files.index)
    if accelerator.is_local_main_process:
        index.check_rows()
    sources = sources_of(data)
    names = [source.name for source in sources]
    encoded = None
    if data.encode:
        fingerprint = fingerprint_of(files.base, data)
        encoded = EncodedIndex(files.encoded, fingerprint, index, names, data.shards_per_encoding)
    elif accelerator.is_local_main_process:
        index.check_tars()  # a request for each tar where they lie at URLs: once per node
    plan = MixtureOrder(index.sizes(names), [source.ratio for source in sources], options.seed)
    batches = TrainingBatches(
        index,
        plan,
        names,
        seed=options.seed,
        global_batch_size=train.global_batch_size,
        batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        prompt_dropout_prob=data.prompt_dropout_prob,
        ref_img_dropout_prob=data.ref_img_dropout_prob,
        encoded=encoded,
    )
    conditioner = Conditioner(
        _frozen_encoder(options, files.base, accelerator.device) if encoded is None else encoded,
        accelerator.device,
        scaling=latent_scaling(files.base),
        transport=options.transport,
        global_batch_size=train.global_batch_size,
    )
    return TrainingData(index, sources, plan, batches, conditioner)


def _frozen_encoder(options: ExperimentOptions, base: Path, device: torch.device) -> FrozenEncoder:
    return FrozenEncoder(
        base,
        device,
        text_dtype=torch.bfloat16 if options.train.mixed_precision == "bf16" else torch.float32,
        max_text_tokens=options.data.maximum_text_tokens,
        use_chat_template=options.data.use_chat_template,
        batch_pixels=VAE_BATCH_PIXELS,
    )


def open_index(options: ExperimentOptions, path: Path) -> ShardIndex:
    """The index of the shards, with the disk cache for those at URLs."""
    cache = Path(options.cache_dir).expanduser() if options.cache_dir else Path.home() / ".cache" / "omnitune"
    return ShardIndex.load(path, cache=cache / "shards", cache_bytes=options.data.url_cache_mb * 1_000_000)

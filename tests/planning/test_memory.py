"""Estimated memory against what processes take, and the parallelism that follows from it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions
from omnitune.flops import SampleTokens
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.planning.blocks import Compute, LiveBytes, ends_footprint
from omnitune.planning.memory import (
    choose_parallelism,
    device_memory,
    encoder_bytes_of,
    estimate_memory,
    optimizer_bytes,
    planned_model,
)

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).parents[1] / "helpers/peak_memory.py"
MEDIUM: dict[str, Any] = {  # 41 million parameters
    "in_channels": 4,
    "hidden_size": 480,
    "num_layers": 6,
    "num_refiner_layers": 1,
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "multiple_of": 64,
    "axes_dim_rope": [20, 20, 20],
    "axes_lens": [2048, 256, 256],
    "text_feat_dim": 256,
}
BATCH = [[60, [144], 576], [40, [], 256]]
SAMPLES = [SampleTokens(text, tuple(references), image) for text, references, image in BATCH]


def options(encode: bool = True, **train: Any) -> ExperimentOptions:
    content = {"name": "x", "data": {"data_path": "mix.yml", "encode": encode}, "train": train}
    return ExperimentOptions.model_validate(content | {"model": {"pretrained_model_path": "demo"}})


def estimated(strategy: str = "single", shard_size: int = 1, config: Any = MEDIUM, **train: Any) -> int:
    keys: dict[str, Any] = {"strategy": strategy, "shard_size": shard_size, "batch": SAMPLES, "device": "cpu"}
    return estimate_memory(options(**train), config, **keys).total


def measured(strategy: str, train: dict[str, Any], processes: int = 1) -> list[int]:
    """How far the memory of each process rises; freed memory goes back at once, so that the peak is what was alive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    case = json.dumps({"config": MEDIUM, "train": train, "batch": BATCH, "strategy": strategy})
    command = [sys.executable, str(SCRIPT), case]
    running = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(processes)
    ]
    return [json.loads(process.communicate(timeout=600)[0])["bytes"] for process in running]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "processes", "train"),
    [
        ("single", 1, {"gradient_checkpointing": False, "mixed_precision": "no"}),
        ("single", 1, {"gradient_checkpointing": True, "mixed_precision": "no"}),
        ("single", 1, {"gradient_checkpointing": False, "mixed_precision": "bf16"}),
        ("single", 1, {"gradient_checkpointing": False, "mixed_precision": "no", "lora_ft": True}),
        ("fsdp", 2, {"gradient_checkpointing": True, "mixed_precision": "no"}),
    ],
)
def test_estimates_are_what_processes_take(strategy: str, processes: int, train: dict[str, Any]) -> None:
    expected = estimated(strategy, processes, **train)
    for peak in measured(strategy, train, processes):
        assert expected == pytest.approx(peak, rel=0.25)


def test_the_ends_are_those_of_the_models_forward() -> None:
    """`ends_footprint` repeats by hand what a forward does around its blocks."""
    model = OmniGen2Transformer2DModel(**{**MEDIUM, "num_layers": 0, "num_refiner_layers": 0})
    latents = [torch.randn(4, 48, 48), torch.randn(4, 32, 32)]
    mask = torch.arange(60)[None] < torch.tensor([[60], [40]])
    references = [[torch.randn(4, 24, 24)], []]
    with LiveBytes(model.parameters()) as kept:
        output = model(latents, torch.rand(2), torch.randn(2, 60, 256), mask, references, return_dict=False)[0]
        loss = sum((found.float() - latent).square().sum() for found, latent in zip(output, latents, strict=True))
    assert loss.requires_grad
    # what blocks would have: each stage's rotary angles, float32 cosines and sines, and the joint sequence
    tokens = sum(sample.total for sample in SAMPLES)
    blocks = 4 * (2 * tokens * MEDIUM["hidden_size"] // MEDIUM["num_attention_heads"] + tokens * MEDIUM["hidden_size"])
    ends = ends_footprint(model.to("meta"), SAMPLES, Compute(torch.float32, torch.float32, "cpu"))
    assert ends.kept == pytest.approx(kept.live + blocks, rel=0.05)


LARGE = [SampleTokens(200, (4096,), 4096)] * 2


def published(strategy: str, shard_size: int, **train: Any) -> dict[str, Any]:
    """Estimate of the published size on GPUs: bytes by part, total and moment."""
    keys: dict[str, Any] = {"strategy": strategy, "shard_size": shard_size, "batch": LARGE, "device": "cuda"}
    estimate = estimate_memory(options(**train), {}, **keys)
    return estimate.parts | {"total": estimate.total, "moment": estimate.moment}


@pytest.mark.slow
def test_the_published_size() -> None:
    model = planned_model({}, options().train)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == pytest.approx(3.967e9, rel=1e-4)
    alone = published("ddp", 1)
    assert alone["weights"] + alone["optimizer"] + alone["gradients"] == 16 * parameters
    sharded = published("fsdp", 8)
    assert sharded["weights"] + sharded["optimizer"] == pytest.approx(12 * parameters / 8, rel=0.01)
    assert 10e9 < sharded["total"] < 20e9
    kept = published("fsdp", 8, gradient_checkpointing=False)
    every_other = published("fsdp", 8, gradient_checkpointing_every=2)
    assert sharded["activations"] * 10 < every_other["activations"] < 0.6 * kept["activations"]
    assert published("fsdp", 8, reshard_after_forward=False)["gathered"] > 2 * parameters
    assert published("fsdp", 8, cpu_offload=True)["total"] < sharded["total"] - 5e9
    # whole gradients are added up until they are exchanged
    accumulated = published("fsdp", 8, global_batch_size=32, gradient_accumulation_steps=2)
    assert accumulated["gradients"] == 4 * parameters
    averaged = published("fsdp", 8, ema_decay=0.99)
    assert averaged["average"] == sharded["weights"]


@pytest.mark.slow
def test_adapters_and_groups_save_what_is_not_trained() -> None:
    full, lora = published("ddp", 1), published("ddp", 1, lora_ft=True)
    assert lora["weights"] == pytest.approx(full["weights"] / 2, rel=0.01)  # frozen matrices are in bf16
    assert lora["optimizer"] + lora["gradients"] < 0.01 * full["optimizer"]
    last = published("ddp", 1, parameter_groups=[{"pattern": "layers.31.*"}])
    assert last["optimizer"] < full["optimizer"] / 30
    assert last["activations"] < lora["activations"]  # nothing is kept of what lies before it
    with pytest.raises(ValueError, match=r"train\.parameter_groups: 'layer\.\*' fits no parameter"):
        published("ddp", 1, parameter_groups=[{"pattern": "layer.*"}])


@pytest.mark.slow
def test_activations_grow_with_tokens_and_fused_norms_keep_less() -> None:
    def activations(samples: list[SampleTokens], device: str) -> int:
        keys: dict[str, Any] = {"strategy": "single", "shard_size": 1, "device": device}
        return estimate_memory(options(gradient_checkpointing=False), MEDIUM, batch=samples, **keys).activations

    one, two = activations(SAMPLES[1:], "cpu"), activations(SAMPLES[1:] * 2, "cpu")
    assert 1.4 < two / one < 2
    assert activations(SAMPLES, "cuda") < 0.85 * activations(SAMPLES, "cpu")


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", 8e6), ("adamw_8bit", 2e6), ("adafactor", 8e3), ("prodigy", 16e6), ("muon", 4e6)]
)
def test_state_of_optimizers(name: str, expected: float) -> None:
    assert optimizer_bytes(name, (1000, 1000), True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_state_of_optimizers_is_what_they_have(name: str) -> None:
    from omnitune.training.optimizer import build_optimizers, update

    train = options(optimizer=name, parallelism="auto").train
    model = OmniGen2Transformer2DModel(**TRANSFORMER)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers = build_optimizers(model, train)
    update(optimizers, 1e-3)
    states = [value for o in optimizers for state in o.state.values() for value in state.values()]
    found = sum(value.nbytes for value in states if torch.is_tensor(value) and value.dim())
    batch = [SampleTokens(4, (), 16)]
    keys: dict[str, Any] = {"strategy": "single", "shard_size": 1, "batch": batch, "device": "cpu"}
    assert estimate_memory(options(optimizer=name, parallelism="auto"), TRANSFORMER, **keys).optimizer == pytest.approx(
        found, rel=0.01
    )


def chosen(gigabytes: float, processes: int = 16, nodes: int = 2, **train: Any) -> tuple[str, str]:
    keys: dict[str, Any] = {"processes": processes, "nodes": nodes, "device_bytes": int(gigabytes * 1e9)}
    return choose_parallelism(options(**train), {}, batch=LARGE, **keys)


@pytest.mark.slow
def test_auto_takes_the_first_strategy_that_fits() -> None:
    strategy, reason = chosen(80, lora_ft=True)
    assert (strategy, reason[:10]) == ("ddp", "ddp needs ")
    assert reason.endswith(" of 80.0 GB per process")
    strategy, reason = chosen(24)
    assert strategy == "hsdp"
    assert reason.split("; ")[1].startswith("hsdp needs ")
    assert chosen(24, nodes=1)[0] == "fsdp"
    assert chosen(24, processes=2)[0] == "fsdp", "one process per node makes no replicas"
    assert chosen(1)[0] == "fsdp"
    assert chosen(80, processes=1, nodes=1)[0] == "single"
    assert chosen(1, optimizer="adafactor", parallelism="auto") == (
        "ddp",
        "the optimizer 'adafactor' computes over whole parameters",
    )


def test_encoders_are_counted_where_training_encodes(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "mllm").mkdir()
    save_file({"decoder.weight": torch.zeros(10, 10)}, tmp_path / "vae" / "model.safetensors")
    tensors = {"model.norm.weight": torch.zeros(50), "visual.weight": torch.zeros(99), "lm_head.weight": torch.zeros(7)}
    save_file(tensors, tmp_path / "mllm" / "model.safetensors")
    assert encoder_bytes_of(tmp_path, options(encode=False, mixed_precision="bf16")) == 4 * 100 + 2 * 50
    assert encoder_bytes_of(tmp_path, options(encode=False, mixed_precision="no")) == 4 * 100 + 4 * 50
    assert encoder_bytes_of(tmp_path, options(encode=True)) == 0
    assert encoder_bytes_of(tmp_path / "none", options(encode=False)) == 0


def test_memory_of_this_machine() -> None:
    assert device_memory(2) == device_memory() // (1 if torch.cuda.is_available() else 2)

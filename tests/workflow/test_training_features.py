"""What options change in a training: one process in this one, on the demo's data."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.trainings import TRAINED, difference, rows, tensors, train, write_options
from helpers.workplace import Workplace
from omnitune.config import ExperimentOptions, starting_weights
from omnitune.training.inputs import TrainingFiles
from omnitune.training.loop import Trainer

pytestmark = pytest.mark.workflow

HELDOUT = {"data_path": "resources/demo/heldout/in_context.jsonl", "max_samples": 4, "num_inference_steps": 2}
Fit = Callable[..., Trainer]


@pytest.fixture
def fit(mixed: Workplace, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Trains in this process; `before` is called with the trainer first."""
    monkeypatch.chdir(mixed.root)
    monkeypatch.setattr(logging.getLogger("omnitune"), "propagate", True)

    def run(
        name: str, start: str = "demo", before: Callable[[Trainer], Any] = lambda trainer: None, **sections: Any
    ) -> Trainer:
        sections["train"] = {"batch_size": 8, "max_train_steps": 3, **sections.get("train", {})}
        options = ExperimentOptions.load(write_options(mixed, name, start, **sections))
        weights = starting_weights(options, {})
        AcceleratorState._reset_state(reset_partial_state=True)
        files = TrainingFiles(
            Path(f"config/options/{name}.yml"),
            base=weights.base,
            transformer=weights.transformer,
            index=Path("prepared/mixed/shards/index.parquet"),
            encoded=Path("prepared/mixed/encoded/demo"),
            output=Path("experiments") / name,
        )
        trainer = Trainer(options, files)
        before(trainer)
        trainer.fit()
        return trainer

    return run


@pytest.mark.parametrize("optimizer", ["adafactor", "prodigy", "muon"])
def test_optimizers_learn_and_resume(mixed: Workplace, fit: Fit, optimizer: str) -> None:
    keys = {"optimizer": optimizer, "learning_rate": 1.0 if optimizer == "prodigy" else 0.003}
    fit(f"{optimizer}_whole", train={**keys, "max_train_steps": 6}, logger={"checkpointing_steps": 3})
    fit(f"{optimizer}_parts", train={**keys, "max_train_steps": 3}, logger={"checkpointing_steps": 3})
    fit(f"{optimizer}_parts", train={**keys, "max_train_steps": 6}, logger={"checkpointing_steps": 3})
    one, other = (mixed.root / f"experiments/{optimizer}_{name}/checkpoint-6" for name in ("whole", "parts"))
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    losses = [row["loss"] for row in rows(mixed, f"{optimizer}_whole")]
    assert len(set(losses)) == 6


def test_muon_on_shards(mixed: Workplace, fit: Fit) -> None:
    """Its iteration runs in bfloat16, so that curves agree to that."""
    keys = {"optimizer": "muon", "learning_rate": 0.003, "max_train_steps": 6}
    fit("muon_single", train=keys)
    train(mixed, "muon_fsdp", train={**keys, "batch_size": 4})
    assert difference(rows(mixed, "muon_single"), rows(mixed, "muon_fsdp")) < 0.02


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"use_8bit_adam": True, "batch_size": 8}, "train.optimizer: 'adamw_8bit' needs a CUDA GPU"),
        ({"optimizer": "adafactor", "batch_size": 4}, "computes over whole parameters"),
        ({"cpu_offload": True, "batch_size": 4}, "train.cpu_offload: true needs"),
        ({"parallelism": "hsdp", "batch_size": 4}, "train.hsdp_shard_size: 2 is not allowed with 2 processes"),
        ({"fp8": True, "batch_size": 8}, "train.fp8: true needs"),
        (
            {"parameter_groups": [{"pattern": "layer.*"}], "batch_size": 8},
            "train.parameter_groups: 'layer.*' fits no parameter",
        ),
        ({"lora_ft": True, "lora_target_modules": ["to_x"], "batch_size": 8}, "train.lora_target_modules: 'to_x'"),
        ({"lora_ft": True, "lora_path": "none.safetensors", "batch_size": 8}, "train.lora_path: none.safetensors"),
    ],
)
def test_what_cannot_work_is_said_once(mixed: Workplace, keys: dict[str, Any], expected: str) -> None:
    output = train(mixed, "impossible", ok=False, train=keys)
    assert output.count(expected) == 1, output[-3000:]
    assert "Traceback" not in output
    assert not list((mixed.root / "experiments/impossible").glob("checkpoint-*"))


def test_partial_fine_tuning_through_conversion(mixed: Workplace, fit: Fit) -> None:
    groups = [{"pattern": "layers.0.*", "learning_rate": 0.01}, {"pattern": "norm_out.*"}]
    trainer = fit("partial", start=TRAINED, train={"parameter_groups": groups})
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [pytest.approx(0.01), pytest.approx(0.001)]
    saved = [
        name for name in tensors(mixed.root / "experiments/partial/checkpoint-3") if name.startswith("pytorch_model")
    ]
    assert saved and all("/layers.0." in name or "/norm_out." in name for name in saved)
    checkpoint = "experiments/partial/checkpoint-3"
    words = [
        "--config_path",
        "config/options/partial.yml",
        "--model_path",
        checkpoint,
        "--save_path",
        f"{checkpoint}/transformer",
    ]
    done = mixed.run("omnitune", "convert", *words)
    assert done.returncode == 0, done.stderr
    before = load_file(mixed.root / TRAINED / "diffusion_pytorch_model.safetensors")
    after = load_file(mixed.root / checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("layers.0.", "norm_out."))}


def test_adapter_goes_on_from_a_file(mixed: Workplace, fit: Fit) -> None:
    keys = {"lora_ft": True, "lora_rank": 4, "lora_target_modules": ["to_q", "feed_forward.linear_1"]}
    fit("adapter", start=TRAINED, train=keys)
    checkpoint = "experiments/adapter/checkpoint-3"
    words = [
        "--config_path",
        "config/options/adapter.yml",
        "--model_path",
        checkpoint,
        "--save_path",
        "converted_adapter",
    ]
    done = mixed.run("omnitune", "convert", *words)
    assert done.returncode == 0, done.stderr
    trained = tensors(mixed.root / checkpoint)
    seen: dict[str, torch.Tensor] = {}

    def look(trainer: Trainer) -> None:
        seen.update({name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad})

    fit("adapter_next", start=TRAINED, before=look, train={**keys, "lora_path": "converted_adapter"})
    assert len(seen) == sum(name.startswith("pytorch_model") for name in trained) > 0
    assert all(torch.equal(seen[name], trained[f"pytorch_model_fsdp_0/{name}"]) for name in seen)


def test_step_that_is_not_finite_is_skipped(mixed: Workplace, fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    weights: list[torch.Tensor] = []
    spoilt: list[str] = []

    def spoil(trainer: Trainer) -> None:
        conditioner, update = trainer.data.conditioner, trainer._update

        def conditioned(samples: Any, seed: int) -> Any:
            found = conditioner(samples, seed)
            if samples[0].step == 1:
                found[2].noise.fill_(float("nan"))
                spoilt.append(samples[2].key)
            return found

        def watched(*arguments: Any) -> Any:
            row = update(*arguments)
            weights.append(trainer.model.norm_out.linear_2.weight.detach().clone())
            return row

        object.__setattr__(trainer.data, "conditioner", conditioned)
        trainer._update = watched  # type: ignore[method-assign]

    fit("spoilt", before=spoil, train={"max_train_steps": 4})
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    found = rows(mixed, "spoilt")
    assert [row.get("skipped", False) for row in found] == [False, True, False, False]
    assert found[1]["loss"] is None
    assert (
        f"step 2 is skipped (1 in a row): loss nan, gradient norm nan. Samples with such a loss: {spoilt[0]}."
        in caplog.text
    )
    assert json.loads((mixed.root / "experiments/spoilt/train.json").read_text())["skipped_steps"] == 1


def test_float16_scales_its_loss(mixed: Workplace, fit: Fit) -> None:
    trainer = fit("begun", train={"mixed_precision": "fp16"})
    assert trainer.loss_scale.value == 32768.0  # what it begins with is too much for gradients of a norm of 7
    assert [row.get("skipped", False) for row in rows(mixed, "begun")] == [True, False, False]

    def scaled(value: float) -> Callable[[Trainer], None]:
        return lambda trainer: setattr(trainer.loss_scale, "value", value)

    trainer = fit("half", train={"mixed_precision": "fp16"}, before=scaled(1024.0))
    assert trainer.loss_scale.value == 1024.0
    fit("full", train={"mixed_precision": "fp32"})
    assert difference(rows(mixed, "half"), rows(mixed, "full")) < 0.01

    trainer = fit(
        "overflown",
        train={"mixed_precision": "fp16", "max_train_steps": 2, "max_nonfinite_steps": 0},
        before=scaled(2.0**60),
    )
    assert trainer.loss_scale.value == 2.0**58  # halved twice, which is no reason to stop
    assert [row["skipped"] for row in rows(mixed, "overflown")] == [True, True]
    assert trainer.nonfinite.total == 2


@pytest.mark.parametrize(
    "transport",
    [
        {"snr_type": "uniform"},
        {"snr_type": "stratified_uniform"},
        {"snr_type": "logit_normal", "logit_mean": 0.5, "logit_std": 0.7},
        {"loss_weighting": "min_snr"},
    ],
    ids=["uniform", "stratified", "logit_normal", "min_snr"],
)
def test_transport_changes_the_training(mixed: Workplace, fit: Fit, transport: dict[str, Any]) -> None:
    if not rows(mixed, "plain"):
        fit("plain")
    name = "_".join(str(value).replace(".", "") for value in transport.values())
    fit(name, transport=transport)
    plain, found = rows(mixed, "plain"), rows(mixed, name)
    assert all(a["loss"] != b["loss"] for a, b in zip(plain[1:], found[1:], strict=True))
    if "loss_weighting" in transport:  # the first loss is that of the same weights, and is logged without weights
        assert plain[0]["loss"] == found[0]["loss"]
        assert plain[0]["grad_norm"] != found[0]["grad_norm"]


def test_validation_reaches_every_tracker(mixed: Workplace, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out loss and images, at fixed noise: in metrics.jsonl, TensorBoard and an offline wandb run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    val = {**HELDOUT, "validation_steps": 2, "train_visualization_steps": 3, "visualization_samples": 2}
    logger = {"log_with": ["tensorboard", "wandb"]}
    fit("watched", val=val, logger=logger, train={"max_train_steps": 4, "learning_rate": 1e-12})
    found = {row["step"]: row["val_loss"] for row in rows(mixed, "watched") if "val_loss" in row}
    assert found.keys() == {2, 4}
    assert found[2] == pytest.approx(found[4], rel=1e-5), "noise and times are fixed, and the weights hardly move"
    logs = mixed.root / "experiments/watched/logs"
    names = sorted(path.relative_to(logs / "samples").as_posix() for path in (logs / "samples").rglob("*.png"))
    drawn = [f"{step:08d}/in_context-0000{k}.png" for step in (0, 3, 4) for k in (1, 2)]
    assert names == [*drawn, *(f"inputs/in_context-0000{k}-{number}.png" for k in (1, 2) for number in (0, 1))]
    with Image.open(logs / "samples" / names[0]) as image:
        assert max(image.size) == 32
    events = EventAccumulator(str(logs / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Scalars("val/loss")] == [2, 4]
    assert [event.step for event in events.Images("samples/in_context-00001")] == [0, 3, 4]
    for name in (
        "samples_per_second",
        "tokens_per_second",
        "forward_seconds",
        "backward_seconds",
        "memory_mb",
        "grad_norm",
    ):
        assert len(events.Scalars(f"train/{name}")) == 4
    runs = list((logs / "wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1 and runs[0].stat().st_size > 1000
    assert list((logs / "wandb").rglob("media/images/samples/*.png"))


def test_validation_on_several_processes_is_that_of_one(mixed: Workplace, fit: Fit) -> None:
    val = {
        **HELDOUT,
        "max_samples": 3,
        "validation_steps": 3,
        "validation_timesteps": 3,
        "train_visualization_steps": 3,
    }
    val |= {"visualization_samples": 3}
    fit("validated1", val=val)
    train(mixed, "validated2", val=val, train={"batch_size": 4, "max_train_steps": 3})
    one, two = (rows(mixed, name)[-1]["val_loss"] for name in ("validated1", "validated2"))
    assert one == pytest.approx(two, rel=1e-5)
    assert len(list((mixed.root / "experiments/validated2/logs/samples/00000003").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"task_type": "t2i", "instruction": "a", "output_image": "none.png"}', "none.png"),
        ('{"task_type": "t2i"', "not valid JSON"),
        ("", "holds no samples"),
    ],
)
def test_bad_heldout_file_is_named(mixed: Workplace, fit: Fit, line: str, expected: str) -> None:
    (mixed.root / "held.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"held\.jsonl") as error:
        fit(f"unvalidated{len(line)}", val={"data_path": "held.jsonl"})
    assert expected in str(error.value)


def test_compiled_blocks_train_alike(mixed: Workplace, fit: Fit) -> None:
    fit("eager", train={"gradient_checkpointing": True})
    train(
        mixed,
        "compiled",
        train={"compile": True, "gradient_checkpointing": True, "batch_size": 4, "max_train_steps": 3},
    )
    assert difference(rows(mixed, "eager"), rows(mixed, "compiled")) < 1e-5


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_full_disk_in_the_background(mixed: Workplace) -> None:
    """The step that completes the save stops with one message; the last good checkpoint stays."""
    folder = mixed.root / "experiments/crowded"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=40m tmpfs {folder}"):
        pytest.skip("no right to mount a small file system")
    try:
        keys = {"async_checkpoint": True, "batch_size": 4, "max_train_steps": 12}
        output = train(mixed, "crowded", ok=False, train=keys, logger={"checkpointing_steps": 4})
        assert output.count("No space left") == 1, output[-3000:]
        assert "Traceback" not in output
        whole = [path.parent.name for path in folder.glob("checkpoint-*/trainer_state.json")]
        assert whole and "checkpoint-12" not in whole
    finally:
        os.system(f"umount --lazy {folder}")


def test_adapters_on_matrices_in_bf16(mixed: Workplace, fit: Fit) -> None:
    """Frozen matrices and adapters have other dtypes: on shards the losses are those of one process."""
    keys: dict[str, Any] = {"mixed_precision": "bf16", "lora_ft": True, "lora_rank": 4, "lora_target_modules": ["to_q"]}
    trainer = fit("bf16_single", start=TRAINED, train=keys)
    held = {(p.requires_grad, p.dtype) for p in trainer.model.parameters() if p.ndim > 1}
    assert held == {(True, torch.float32), (False, torch.bfloat16)}
    output = train(mixed, "bf16_fsdp", start=TRAINED, train={**keys, "batch_size": 4, "max_train_steps": 3})
    assert "strategy fsdp, 2 processes" in output
    assert difference(rows(mixed, "bf16_single"), rows(mixed, "bf16_fsdp")) < 0.01
    checkpoint = tensors(mixed.root / "experiments/bf16_fsdp/checkpoint-3")
    assert {tensor.dtype for name, tensor in checkpoint.items() if name.startswith("pytorch_model")} == {torch.float32}

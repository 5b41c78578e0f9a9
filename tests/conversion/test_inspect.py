"""What weights are, from their headers: each form that is written or read, and a stranger's files."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.conversions import (
    RANK,
    adapters_of,
    lora_model,
    options_for,
    random_model,
    start_of,
    write_checkpoint,
)
from helpers.models import tiny_pipeline
from omnitune.checkpoints.states import TrainerState
from omnitune.conversion.export import convert
from omnitune.conversion.inspect import inspect
from omnitune.conversion.write import Target
from omnitune.io.files import sha256_of
from omnitune.paths import STATE_FILE

pytestmark = pytest.mark.unit


def picked(facts: dict[str, Any], *names: str) -> list[Any]:
    return [facts[name] for name in names]


def test_each_format_of_an_adapter(tmp_path: Path) -> None:
    write_checkpoint(adapters_of(lora_model()), tmp_path / "checkpoint-3", "distributed")
    arguments = options_for(lora=True, alpha=8), tmp_path / "checkpoint-3"
    for format in ("diffusers", "comfyui"):
        convert(*arguments, tmp_path / format, start_of(tmp_path), target=Target(format))
    found = inspect(tmp_path / "diffusers")
    assert picked(found, "kind", "rank", "scale", "modules") == ["LoRA", [RANK], [1.0], 16]
    assert found["targets"] == {"attn.to_k": 4, "attn.to_out": 4, "attn.to_q": 4, "attn.to_v": 4}
    assert found["loads_in"] == ["omnitune", "diffusers", "published code", "peft"]
    assert found["fingerprint"] == sha256_of(tmp_path / "diffusers/conversion.json")
    comfyui = inspect(tmp_path / "comfyui")
    assert picked(comfyui, "format", "scale", "loads_in") == [
        "'diffusion_model.' before the modules",
        [2.0],
        ["omnitune", "ComfyUI"],
    ]
    state = {
        f"lora_unet_{name.replace('.', '_')}": torch.zeros(2, 4)
        for name in ("layers.31.attn.to_q", "layers.0.attn.to_v")
    }
    pairs = {f"{name}.lora_down.weight": tensor for name, tensor in state.items()}
    save_file(pairs | {f"{name}.lora_up.weight": torch.zeros(4, 2) for name in state}, tmp_path / "kohya.safetensors")
    assert picked(inspect(tmp_path / "kohya.safetensors"), "modules", "loads_in") == [2, ["omnitune", "ComfyUI"]]


def test_programs_that_miss_a_scale_or_the_model_are_not_named(tmp_path: Path) -> None:
    def written(before: str, module: str, **others: torch.Tensor) -> Path:
        pair = {
            f"{before}{module}.lora_A.weight": torch.zeros(2, 4),
            f"{before}{module}.lora_B.weight": torch.zeros(4, 2),
        }
        save_file(
            pair | {f"{before}{module}{end}": tensor for end, tensor in others.items()}, tmp_path / "x.safetensors"
        )
        return tmp_path / "x.safetensors"

    alpha = {".alpha": torch.tensor(1.0)}
    assert inspect(written("transformer.", "layers.0.attn.to_q"))["loads_in"] == [
        "omnitune",
        "diffusers",
        "published code",
    ]
    assert inspect(written("transformer.", "layers.0.attn.to_q", **alpha))["loads_in"] == ["omnitune"]
    assert inspect(written("diffusion_model.", "layers.0.attn.to_q", **alpha))["loads_in"] == ["omnitune", "ComfyUI"]
    said = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 1})}
    save_file(load_file(written("", "layers.0.attn.to_q")), tmp_path / "said.safetensors", metadata=said)
    assert picked(inspect(tmp_path / "said.safetensors"), "scale", "loads_in") == [[0.5], ["omnitune"]]
    with pytest.raises(
        ValueError, match=r"adapts 1 modules that OmniGen2's transformer does not have: blocks\.0\.to_q\."
    ):
        inspect(written("transformer.", "blocks.0.to_q"))
    save_file({"layers.999999999.x": torch.zeros(1), "layers.y.x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert inspect(tmp_path / "x.safetensors")["kind"] == "checkpoint"


def test_transformers_and_pipelines(tmp_path: Path) -> None:
    model = random_model()
    model.save_pretrained(tmp_path / "one")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "many", max_shard_size="100KB")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for name, dtype, programs in (
        ("one", "F32", ["omnitune", "published code", "ComfyUI"]),
        ("many", "BF16", ["omnitune", "published code"]),
    ):
        found = inspect(tmp_path / name)
        assert picked(found, "kind", "layers", "parameters", "loads_in") == ["transformer", 1, parameters, programs]
        assert found["dtypes"] == {dtype: parameters}
    assert inspect(tmp_path / "one/diffusion_pytorch_model.safetensors")["loads_in"] == ["ComfyUI"]
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    found = inspect(tmp_path / "pipeline")
    assert picked(found, "kind", "missing", "transformer.kind") == ["pipeline", [], "transformer"]


def test_checkpoints(tmp_path: Path) -> None:
    state = adapters_of(lora_model())
    write_checkpoint(state, tmp_path / "checkpoint-3", "distributed")
    lora = {"rank": RANK, "alpha": 8}
    (tmp_path / "checkpoint-3" / STATE_FILE).write_text(
        json.dumps(vars(TrainerState(3, {"options": {}, "data": {}}, lora)))
    )
    found = inspect(tmp_path / "checkpoint-3")
    assert picked(found, "kind", "step", "lora", "adapters", "average") == ["checkpoint", 3, lora, 16, False]
    assert found["dtypes"] == {"float32": sum(tensor.numel() for tensor in state.values())}
    for form in ("bin", "safetensors"):
        write_checkpoint(state, tmp_path / form, form)
        assert picked(inspect(tmp_path / form), "kind", "adapters") == ["checkpoint", 16]


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_strangers_files_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    for place in ("x.bin", "x.safetensors", "checkpoint/.metadata"):
        (tmp_path / place).write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
        with pytest.raises(ValueError, match=r"cannot be read|is not the metadata"):
            inspect(tmp_path / place if "/" not in place else tmp_path / "checkpoint")
    assert not (tmp_path / "trace").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: is not a checkpoint"):
        inspect(tmp_path / "empty")
    with pytest.raises(ValueError, match="nowhere: does not exist"):
        inspect(tmp_path / "nowhere")

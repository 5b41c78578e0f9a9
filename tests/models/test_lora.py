"""LoRA adapters: what they change, and their file."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.models import randomise, tiny_pipeline, tiny_transformer
from helpers.tiny import TRANSFORMER
from omnitune.models import (
    OmniGen2Pipeline,
    OmniGen2Transformer2DModel,
    load_lora,
    lora_config,
    lora_state_dict,
    read_lora,
    save_lora,
)
from omnitune.models.lora.lora import resolve_targets

pytestmark = pytest.mark.unit

FILE = "pytorch_lora_weights.safetensors"


def inputs() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": [torch.randn(4, 8, 8, generator=generator)],
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 5, 32, generator=generator),
        "encoder_attention_mask": None,
        "ref_image_hidden_states": [[torch.randn(4, 4, 4, generator=generator)]],
    }


@torch.no_grad()
def output(model: OmniGen2Transformer2DModel, **options: Any) -> torch.Tensor:
    return model(**inputs(), **options).sample[0]


def trained(rank: int = 4, alpha: float | None = None, **options: Any) -> OmniGen2Transformer2DModel:
    model = tiny_transformer()
    model.add_adapter(lora_config(rank, alpha, **options))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.5, generator=generator)
            elif "magnitude" in name:
                parameter.mul_(1 + 0.5 * torch.rand(parameter.shape, generator=generator))
    return model


def test_new_adapter_changes_nothing_and_covers_all_attention() -> None:
    model = tiny_transformer()
    before = output(model)
    model.add_adapter(lora_config(4))
    assert torch.equal(output(model), before)
    state = lora_state_dict(model)
    blocks = 3 * TRANSFORMER["num_refiner_layers"] + TRANSFORMER["num_layers"]
    assert len(state) == blocks * 4 * 2
    assert state["layers.0.attn.to_out.0.lora_A.weight"].shape == (4, 48)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        name.replace(".weight", ".default.weight") for name in state
    }


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, 16])
def test_file_gives_the_same_outputs(alpha: float | None, tmp_path: Path) -> None:
    model = trained(alpha=alpha)
    path = save_lora(tmp_path, lora_state_dict(model), model.peft_config["default"])
    assert path == tmp_path / FILE and list(tmp_path.iterdir()) == [path]
    assert all(name.startswith("transformer.") and ".lora_" in name for name in load_file(path))
    assert (output(model) - output(tiny_transformer())).abs().max() > 0.01
    for source in (tmp_path, path):
        loaded = tiny_transformer()
        load_lora(loaded, source)
        assert torch.allclose(output(loaded), output(model), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_kinds_of_adapters_come_back_exactly(use_dora: bool, use_rslora: bool, tmp_path: Path) -> None:
    targets = ["to_q", "feed_forward.linear_2"]
    model = trained(alpha=8, target_modules=targets, use_dora=use_dora, use_rslora=use_rslora)
    other = trained(alpha=8, target_modules=targets, use_dora=not use_dora, use_rslora=use_rslora)
    save_lora(tmp_path, lora_state_dict(model), model.peft_config["default"])
    names = set(load_file(tmp_path / FILE))
    assert ("transformer.layers.0.attn.to_q.lora_magnitude_vector" in names) == use_dora
    loaded, pipeline, plain = tiny_transformer(), tiny_pipeline(), tiny_transformer()
    load_lora(loaded, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    plain.load_lora_adapter(tmp_path, prefix="transformer", weight_name=FILE)
    for found in (loaded, pipeline.transformer, plain):
        assert torch.equal(output(found), output(model))
    assert not torch.allclose(output(other), output(model), atol=1e-3)


def test_published_file_without_config_means_alpha_is_rank(tmp_path: Path) -> None:
    model = trained()
    save_lora(tmp_path, lora_state_dict(model.state_dict()))
    with safe_open(tmp_path / FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    loaded = tiny_transformer()
    load_lora(loaded, tmp_path)
    assert torch.allclose(output(loaded), output(model), atol=1e-6)


@pytest.mark.slow
def test_scale_of_a_call() -> None:
    model, plain = trained(), output(tiny_transformer())
    assert torch.allclose(output(model, attention_kwargs={"scale": 0.0}), plain, atol=1e-6)
    assert not torch.allclose(output(model), plain, atol=1e-3)


def test_pipeline_saves_loads_and_unloads(tmp_path: Path) -> None:
    model = trained(alpha=8)
    OmniGen2Pipeline.save_lora_weights(tmp_path, lora_state_dict(model), model.peft_config["default"])
    pipeline = tiny_pipeline()
    before = output(pipeline.transformer)
    pipeline.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipeline.transformer), output(model), atol=1e-6)
    assert pipeline.get_active_adapters() == ["default"]
    weight = pipeline.transformer.layers[0].attn.to_q.base_layer.weight.clone()
    pipeline.fuse_lora()
    assert not torch.equal(pipeline.transformer.layers[0].attn.to_q.base_layer.weight, weight)
    assert torch.allclose(output(pipeline.transformer), output(model), atol=1e-5)
    pipeline.unfuse_lora()
    assert torch.allclose(pipeline.transformer.layers[0].attn.to_q.base_layer.weight, weight, atol=1e-6)
    pipeline.set_adapters(["default"], [0.0])
    assert torch.allclose(output(pipeline.transformer), before, atol=1e-5)
    pipeline.unload_lora_weights()
    assert torch.allclose(output(pipeline.transformer), before, atol=1e-5)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank = 0"):
        lora_config(0)
    with pytest.raises(ValueError, match="no LoRA adapter named 'default'"):
        lora_state_dict(tiny_transformer())
    with pytest.raises(FileNotFoundError, match=FILE):
        read_lora(tmp_path)
    state = lora_state_dict(trained())
    save_lora(tmp_path, {name.replace("layers.", "blocks."): tensor for name, tensor in state.items()})
    with pytest.raises(ValueError, match=r"modules that the model does not have, such as \['blocks.0.attn"):
        load_lora(tiny_transformer(), tmp_path)
    pair = {name: tensor for name, tensor in state.items() if name.startswith("layers.0.attn.to_q.")}
    for wrong in ({f"transformer.{next(iter(pair))}": torch.zeros(1)}, {}):
        save_file(wrong, tmp_path / FILE)
        with pytest.raises(ValueError, match="is no LoRA of the transformer"):
            read_lora(tmp_path)


def test_adapter_on_bfloat16_base(tmp_path: Path) -> None:
    model = trained()
    save_lora(tmp_path, lora_state_dict(model))
    half = tiny_transformer()
    randomise(half)
    half.to(torch.bfloat16)
    load_lora(half, tmp_path)
    exact = output(model)
    assert (output(half) - exact).norm() < 0.05 * exact.norm()


def test_targets_are_ends_of_names_or_patterns() -> None:
    model = tiny_transformer()
    default = resolve_targets(model, None)
    assert len(default) == 5 * 4
    assert resolve_targets(model, ["to_k", "to_q", "to_v", "to_out.0"]) == default
    assert resolve_targets(model, ["layers.*.attn.to_q", "layers.1.attn.to_q"]) == [
        "layers.0.attn.to_q",
        "layers.1.attn.to_q",
    ]
    assert resolve_targets(model, ["norm_out.linear_1"]) == ["norm_out.linear_1"]
    assert "norm_out.linear_1" not in resolve_targets(model, ["feed_forward.linear_1"])
    for entry, near in (("to_qq", "to_q"), ("layers.*.atn.to_q", "layers.0.attn.to_q"), ("o_q", "to_q")):
        with pytest.raises(ValueError, match=rf"train.lora_target_modules: '{re.escape(entry)}' fits no .*{near}"):
            resolve_targets(model, ["to_k", entry])


def test_a_part_of_an_adapter_is_refused(tmp_path: Path) -> None:
    state = lora_state_dict(trained(use_dora=True))
    del state["layers.0.attn.to_q.lora_magnitude_vector"]
    save_lora(tmp_path, state)
    with pytest.raises(ValueError, match="2 of 59 tensors"):
        read_lora(tmp_path)


@pytest.mark.parametrize("dora", [False, True])
def test_the_strength_of_an_adapter_is_the_scale_of_a_call(dora: bool) -> None:
    model = trained(use_dora=dora)
    wanted, plain = output(model, attention_kwargs={"scale": 0.5}), output(model)
    model.set_adapters(["default"], [0.5])
    torch.testing.assert_close(output(model), wanted)
    assert (wanted - plain).abs().max() > 0.01
    model.set_adapters(["default"], [1.0])
    torch.testing.assert_close(output(model), plain)

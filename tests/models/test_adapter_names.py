"""Adapters of other tools come to the same outputs, by whatever names and with whatever scale they were written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from helpers.models import adapted_transformer, text_to_image_output, tiny_transformer
from omnitune.models import load_lora, lora_state_dict, read_lora
from omnitune.models.lora.names import ALPHA, FACTORS, MAGNITUDE, read_names

pytestmark = pytest.mark.unit

KEYS = Path(__file__).parents[1] / "data/reference/transformer_keys.tsv"
State = dict[str, torch.Tensor]
TARGETS = ["to_q", "to_out.0"]


def published_modules() -> list[str]:
    """Names of the published transformer's linear layers."""
    rows = [line.split("\t") for line in KEYS.read_text().splitlines()[1:]]
    return [name.removesuffix(".weight") for name, shape in rows if name.endswith(".weight") and "x" in shape]


def renamed(state: State, alpha: float | None, name: Callable[[str, str], str]) -> State:
    """The tensors by the name of their module and of their part; alpha beside each pair unless None."""
    named = {}
    for key, tensor in state.items():
        end = next(end for end in (*FACTORS, MAGNITUDE) if key.endswith(end))
        named[name(key.removesuffix(end), end)] = tensor.clone()
        if alpha is not None and end == FACTORS[0]:
            named[name(key.removesuffix(end), ALPHA)] = torch.tensor(alpha)
    return named


def down_and_up(end: str) -> str:
    return {FACTORS[0]: ".lora_down.weight", FACTORS[1]: ".lora_up.weight"}.get(end, end)


FORMS: dict[str, Callable[[str, str], str]] = {
    "comfyui": lambda module, end: f"diffusion_model.{module}{end}",
    "down and up": lambda module, end: f"diffusion_model.{module}{down_and_up(end)}",
    "bare": lambda module, end: module + end,
    "peft": lambda module, end: f"base_model.model.{module}{end}",
    "peft of a pipeline": lambda module, end: f"base_model.model.transformer.{module}{end}",
    "kohya": lambda module, end: f"lora_unet_{module.replace('.', '_')}{down_and_up(end)}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [2.0, None])
def test_an_adapter_by_other_names_is_the_same(tmp_path: Path, form: str, alpha: float | None) -> None:
    model = adapted_transformer(alpha or 4, target_modules=TARGETS)
    save_file(renamed(lora_state_dict(model), alpha, FORMS[form]), tmp_path / "any.safetensors")
    loaded = tiny_transformer()
    load_lora(loaded, tmp_path / "any.safetensors")
    assert torch.allclose(text_to_image_output(loaded), text_to_image_output(model), atol=1e-6)


def test_scales_are_those_of_each_module(tmp_path: Path) -> None:
    """Without alpha a scale is 1, also where ranks differ; diffusers would take the rank of most for alpha."""
    model, module = adapted_transformer(4, target_modules=TARGETS), "layers.0.attn.to_q"
    state = renamed(lora_state_dict(model), None, FORMS["comfyui"])
    down, up = (f"diffusion_model.{module}{end}" for end in FACTORS)
    state[down], state[up] = state[down].repeat(2, 1), state[up].repeat(1, 2) / 2
    save_file(state, tmp_path / "x.safetensors")
    loaded = tiny_transformer()
    load_lora(loaded, tmp_path / "x.safetensors")
    assert torch.allclose(text_to_image_output(loaded), text_to_image_output(model), atol=1e-6)
    state[f"diffusion_model.{module}.alpha"] = torch.tensor(4.0)
    state[up] *= 2
    save_file(state, tmp_path / "x.safetensors")
    loaded = tiny_transformer()
    load_lora(loaded, tmp_path / "x.safetensors")
    assert torch.allclose(text_to_image_output(loaded), text_to_image_output(model), atol=1e-6)


@pytest.mark.parametrize("kind", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_an_adapter_that_peft_has_saved(tmp_path: Path, kind: dict[str, bool]) -> None:
    model = get_peft_model(tiny_transformer(), LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], **kind))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
    model.save_pretrained(tmp_path)
    loaded = tiny_transformer()
    load_lora(loaded, tmp_path)
    assert torch.allclose(text_to_image_output(loaded), text_to_image_output(model), atol=1e-6)


def test_published_names_are_told_apart_in_each_form() -> None:
    modules = published_modules()
    assert len(modules) > 250
    for form in FORMS.values():
        names = {form(module, end): module + end for module in modules for end in (*FACTORS, ALPHA)}
        assert len(names) == 3 * len(modules)
        found = read_names(names, modules)
        assert (found.plain, found.unknown) == (names, [])


def test_what_is_unknown_is_named(tmp_path: Path) -> None:
    state = renamed(lora_state_dict(adapted_transformer(4, target_modules=TARGETS)), None, FORMS["kohya"])
    path = tmp_path / "x.safetensors"
    for extra, message in (
        ("lora_unet_no_such_layer.lora_down.weight", r"1 of 21 tensors, such as \['lora_unet_no_such_layer"),
        ("lora_te_text_model.lora_down.weight", r"such as \['lora_te_text_model\.lora_down"),
        (
            "lora_unet_layers_0_attn_to_q.dora_scale",
            r"'lora_unet_layers_0_attn_to_q\.dora_scale'\].*DoRA by another norm",
        ),
        ("layers.0.attn.to_q.lora_A.weight", r"is there twice, as layers\.0\.attn\.to_q\.lora_A\.weight"),
        ("layers.0.attn.to_v.hada_w1_a", "such as .*hada_w1_a"),
    ):
        save_file({**state, extra: torch.zeros(4, 48)}, path)
        with pytest.raises(ValueError, match=message):
            load_lora(tiny_transformer(), path)
    for value in (torch.tensor(-1.0), torch.zeros(2)):
        save_file({**state, "lora_unet_layers_0_attn_to_q.alpha": value}, path)
        with pytest.raises(ValueError, match=r"layers\.0\.attn\.to_q\.alpha: .* is no number above 0"):
            load_lora(tiny_transformer(), path)


def test_the_config_beside_is_checked_like_metadata(tmp_path: Path) -> None:
    state = renamed(lora_state_dict(adapted_transformer(4, target_modules=TARGETS)), None, FORMS["peft"])
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "layer_replication": [[0, 9]]}))
    with pytest.raises(ValueError, match=r"layer_replication: .* not supported"):
        read_lora(tmp_path)

"""The adapter that the options ask for, and the published one that its training starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.models import adapted_transformer, text_to_image_output, tiny_transformer
from omnitune.config.experiment.training import TrainOptions
from omnitune.models import lora_state_dict, save_lora
from omnitune.models.lora.lora import resolve_targets
from omnitune.paths import ADAPTER_FILE
from omnitune.training.adapter import load_starting_adapter, lora_config_of

pytestmark = pytest.mark.unit


def test_config_of_the_options_adapts_just_its_targets() -> None:
    train = TrainOptions(lora_ft=True, lora_rank=2, lora_alpha=4, lora_target_modules=["layers.*.attn.*", "x_embedder"])
    model = tiny_transformer()
    model.add_adapter(lora_config_of(train, model))
    modules = {name.rsplit(".lora_", 1)[0] for name in lora_state_dict(model)}
    assert modules == set(resolve_targets(tiny_transformer(), train.lora_target_modules))
    assert len(modules) == 2 * 4 + 1


def test_training_starts_from_a_published_adapter(tmp_path: Path) -> None:
    source = adapted_transformer(alpha=8, use_dora=True, target_modules=["to_q"])
    save_lora(tmp_path, lora_state_dict(source), source.peft_config["default"])
    asked = {"lora_ft": True, "lora_rank": 4, "lora_alpha": 8, "lora_use_dora": True, "lora_target_modules": ["to_q"]}
    for path in (tmp_path, tmp_path / ADAPTER_FILE):
        train = TrainOptions(**asked, lora_path=str(path))
        model = tiny_transformer()
        model.add_adapter(lora_config_of(train, model))
        load_starting_adapter(model, train)
        assert torch.equal(text_to_image_output(model), text_to_image_output(source))
        assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)
    for key, value, message in (
        ("lora_rank", 2, "train.lora_rank: 2, but the adapter .* has 4"),
        ("lora_use_dora", False, "train.lora_use_dora: False, but the adapter .* has True"),
        ("lora_target_modules", ["to_q", "to_k"], "only asked for: .*to_k; only in the adapter: none"),
        ("lora_path", str(tmp_path / "lost"), rf"train\.lora_path: .*lost/{ADAPTER_FILE} does not exist"),
        ("lora_path", str(tmp_path / "lost.safetensors"), r"train\.lora_path: .*lost\.safetensors does not exist"),
    ):
        train = TrainOptions(**{**asked, "lora_path": str(tmp_path), key: value})
        model = tiny_transformer()
        model.add_adapter(lora_config_of(train, model))
        with pytest.raises(ValueError, match=message):
            load_starting_adapter(model, train)


@pytest.mark.parametrize("file_alpha", [None, 8])
@pytest.mark.parametrize("asked", [{}, {"lora_alpha": 16}, {"lora_alpha": 2, "lora_use_rslora": True}])
@pytest.mark.parametrize("use_dora", [False, True])
def test_an_adapter_starts_with_its_effect_whatever_alpha_is_asked_for(
    tmp_path: Path, file_alpha: int | None, asked: dict[str, Any], use_dora: bool
) -> None:
    source = adapted_transformer(file_alpha, use_dora=use_dora, target_modules=["to_q"])
    save_lora(tmp_path, lora_state_dict(source), source.peft_config["default"] if file_alpha else None)
    train = TrainOptions(
        lora_ft=True,
        lora_rank=4,
        lora_use_dora=use_dora,
        lora_path=str(tmp_path),
        lora_target_modules=["to_q"],
        **asked,
    )
    model = tiny_transformer()
    model.add_adapter(lora_config_of(train, model))
    load_starting_adapter(model, train)
    assert torch.allclose(text_to_image_output(model), text_to_image_output(source), atol=1e-6)

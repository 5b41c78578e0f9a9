"""What of the transformer is trained."""

from pathlib import Path
from typing import Any

import pytest

from helpers.models import tiny_transformer
from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions
from omnitune.config.training import ParameterGroup, TrainOptions, trained_names
from omnitune.models import lora_state_dict
from omnitune.training.model import Trained, build_model, select_trained

pytestmark = pytest.mark.unit


def trained(**train: Any) -> tuple[Any, set[str], dict[str, float | None]]:
    """A model, the names of what is trained of it, and their learning rates."""
    model = tiny_transformer()
    rates = select_trained(model, TrainOptions(**train))
    return model, {name for name, parameter in model.named_parameters() if parameter.requires_grad}, rates


def test_all_parameters_or_those_of_groups_or_of_adapters_are_trained() -> None:
    model, names, rates = trained()
    assert names == set(rates) == {name for name, _ in model.named_parameters()}
    model, names, rates = trained(parameter_groups=[{"pattern": "norm_out.*", "learning_rate": 0.5}])
    assert names == set(rates) == {f"norm_out.linear_{k}.{part}" for k in (1, 2) for part in ("weight", "bias")}
    assert set(rates.values()) == {0.5}
    model, names, rates = trained(lora_ft=True, lora_rank=2)
    assert {name.replace(".default", "") for name in names} == set(lora_state_dict(model))
    assert rates == {}


def test_weights_are_those_that_the_options_ask_for(tmp_path: Path) -> None:
    tiny_transformer().save_pretrained(tmp_path)

    def build(**arch: Any) -> Trained:
        model = {"pretrained_model_path": "demo", "arch_opt": {**TRANSFORMER, **arch}}
        train = {"lora_ft": True, "lora_rank": 2, "lora_target_modules": ["norm_out.linear_1"]}
        content = {"name": "x", "data": {"data_path": "mix.yml"}, "model": model, "train": train}
        return build_model(ExperimentOptions.model_validate(content), tmp_path)

    found = build()
    assert found.learning_rates == {} and found.dropout is None
    assert found.lora == {
        "rank": 2,
        "alpha": 2,
        "target_modules": ["norm_out.linear_1"],
        "use_dora": False,
        "use_rslora": False,
    }
    layers = TRANSFORMER["num_layers"]
    message = rf"model\.arch_opt\.num_layers: {layers + 1} is not what the weights have: {layers}$"
    with pytest.raises(ValueError, match=message):
        build(num_layers=layers + 1)


def test_parameters_that_groups_name() -> None:
    names = ["layers.0.attn.to_q.weight", "layers.0.norm.weight", "layers.1.attn.to_q.weight", "x_embedder.bias"]
    groups = [ParameterGroup(pattern="layers.1.*", learning_rate=0.5), ParameterGroup(pattern="*.attn.*")]
    assert list(trained_names(names, groups).items()) == [(names[0], None), (names[2], 0.5)]
    assert trained_names(iter(names), None) == dict.fromkeys(names)
    with pytest.raises(
        ValueError, match=r"train.parameter_groups: 'x_embeder\.\*' fits no parameter. Near: x_embedder"
    ):
        trained_names(names, [ParameterGroup(pattern="x_embeder.*")])
    with pytest.raises(ValueError, match="only parameters of the patterns before it"):
        trained_names(names, [*groups, ParameterGroup(pattern="layers.?.attn.*")])

"""What of the transformer is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.models import ragged_batch, randomise, tiny_transformer
from helpers.tiny import TRANSFORMER
from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import ParameterGroup, TrainOptions, trained_names
from omnitune.models import lora_state_dict
from omnitune.training.model import Trained, build_model, require_kernel, select_trained

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
        return build_model(ExperimentOptions.model_validate(content), tmp_path, torch.device("cpu"))

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


@pytest.mark.slow  # bf16 on a CPU that has none
@pytest.mark.parametrize(
    "train",
    [
        {"lora_ft": True, "lora_rank": 2, "lora_target_modules": ["to_q"]},
        {"lora_ft": True, "lora_rank": 2, "lora_target_modules": ["to_q"], "lora_use_dora": True},
        {"parameter_groups": [{"pattern": "layers.1.*"}]},
    ],
    ids=["lora", "dora", "groups"],
)
def test_frozen_matrices_in_the_dtype_of_products_change_no_number(train: dict[str, Any]) -> None:
    def learnt(mixed_precision: str) -> tuple[Any, dict[str, torch.Tensor]]:
        model = tiny_transformer()
        torch.manual_seed(0)
        select_trained(model, TrainOptions(mixed_precision=mixed_precision, **train))
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        randomise(nn.ParameterList(learning.values()))  # an adapter that predicts something
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**ragged_batch(), return_dict=False)[0]
        torch.cat([part.flatten() for part in output]).float().square().sum().backward()
        return model, {name: p.grad for name, p in learning.items() if p.grad is not None}

    (held, found), (whole, expected) = learnt("bf16"), learnt("no")
    assert found.keys() == expected.keys() and found
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    for name, parameter in held.named_parameters():
        matrix = parameter.ndim > 1 and not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if matrix else torch.float32), name


def test_a_kernel_that_the_device_lacks_is_refused() -> None:
    cpu, heads = torch.device("cpu"), (21, 7, 120)
    for kernel in ("auto", "per_sample"):
        require_kernel(TrainOptions(attention=kernel), heads, cpu)
    for kernel in ("cudnn", "varlen"):
        message = rf"train\.attention: '{kernel}' does not run on device 'cpu' .* what does: per_sample\. Take 'auto'"
        with pytest.raises(ValueError, match=message):
            require_kernel(TrainOptions(attention=kernel), heads, cpu)


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

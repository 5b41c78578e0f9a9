"""Account for every key of a checkpoint: what the architecture expects, what is missing, what is too much."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from omnitune.config.experiment.training import TrainOptions
from omnitune.conversion.read import some
from omnitune.conversion.tensors import State
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.lora import FACTORS, MAGNITUDE, published_name, resolve_targets

Shapes = dict[str, tuple[int, ...]]


def empty_transformer(config: Mapping[str, Any]) -> OmniGen2Transformer2DModel:
    """The architecture without any memory for its parameters."""
    with torch.device("meta"):
        return OmniGen2Transformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})


def full_shapes(model: OmniGen2Transformer2DModel) -> Shapes:
    """Name and shape of every parameter of the transformer."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def lora_shapes(model: OmniGen2Transformer2DModel, train: TrainOptions) -> Shapes:
    """Name (`<module>.lora_A.weight`) and shape of every adapter parameter that the options ask for."""
    a, b = FACTORS
    shapes: Shapes = {}
    for name in resolve_targets(model, train.lora_target_modules):
        features_out, features_in = model.get_submodule(name).weight.shape
        shapes |= {name + a: (train.lora_rank, features_in), name + b: (features_out, train.lora_rank)}
        if train.lora_use_dora:
            shapes[name + MAGNITUDE] = (features_out,)
    return shapes


def base_shapes_beside_lora(model: OmniGen2Transformer2DModel, train: TrainOptions) -> Shapes:
    """The base parameters as PEFT names them: those under an adapter as `<module>.base_layer.weight`."""
    adapted = set(resolve_targets(model, train.lora_target_modules))
    shapes: Shapes = {}
    for name, shape in full_shapes(model).items():
        module, _, parameter = name.rpartition(".")
        shapes[f"{module}.base_layer.{parameter}" if module in adapted else name] = shape
    return shapes


def split_lora(state: State) -> tuple[State, State]:
    """(adapters as `<module>.lora_A.weight`, everything else) of a checkpoint.

    Raises:
        ValueError: where two keys name the same adapter parameter.
    """
    adapters: State = {}
    rest: State = {}
    for name, tensor in state.items():
        plain = published_name(name)
        if plain is None:
            rest[name] = tensor
            continue
        if plain in adapters:
            raise ValueError(f"{plain}: the checkpoint holds this adapter twice, with and without `default`.")
        adapters[plain] = tensor
    return adapters, rest


def require_shapes(found: State, expected: Shapes, where: str, advice: str) -> None:
    """Raises ValueError unless the tensors are exactly those expected, names and shapes."""
    missing = expected.keys() - found.keys()
    unexpected = found.keys() - expected.keys()
    wrong = [
        f"{name} is {list(found[name].shape)}, needs {list(expected[name])}"
        for name in found.keys() & expected.keys()
        if tuple(found[name].shape) != expected[name]
    ]
    problems = [
        *_problem("missing", missing),
        *_problem("unexpected", unexpected),
        *_problem("of another shape", wrong),
    ]
    if problems:
        counts = f"{len(found)} keys found, {len(expected)} expected"
        raise ValueError("\n".join([f"{where}: does not fit ({counts})", *problems, f"  {advice}"]))


def _problem(kind: str, names: Iterable[str]) -> list[str]:
    listed = list(names)
    return [f"  - {len(listed)} {kind}: {some(listed)}"] if listed else []

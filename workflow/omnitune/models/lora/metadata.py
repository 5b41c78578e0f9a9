"""The config that an adapter's file carries, checked against its tensors before any library acts on it."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

# What the scale of an adapter is made of; modules, ranks and DoRA are read from the tensors.
NUMBERS = ("lora_alpha", "alpha_pattern", "use_rslora")
# What changes nothing in an adapter that is loaded, or is read from the tensors.
UNUSED = {
    "r", "rank_pattern", "target_modules", "use_dora", "exclude_modules", "lora_dropout", "init_lora_weights",
    "task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version",
}  # fmt: skip
MODULE_END = re.compile(r"\^?[A-Za-z0-9_.]+")


def adapter_ranks(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Rank of each adapted module, from the shapes of the pairs [r, in] and [out, r], and of DoRA's magnitudes [out].

    Raises:
        ValueError: for shapes that are no pair.
    """
    ranks = {}
    for name, shape in shapes.items():
        module, _, part = name.rpartition(".lora_")
        if part != "A.weight":
            continue
        other = list(shapes[f"{module}.lora_B.weight"])
        magnitude = list(shapes.get(f"{module}.lora_magnitude_vector", other[:1]))
        if len(shape) != 2 or len(other) != 2 or shape[0] != other[1] or shape[0] < 1 or magnitude != other[:1]:
            raise ValueError(f"{path}: the tensors of {module} are no pair of an adapter: {list(shape)} and {other}.")
        ranks[module] = int(shape[0])
    return ranks


def checked_metadata(path: Path, text: str, ranks: Mapping[str, int], use_dora: bool) -> dict[str, Any]:
    """The config of an adapter, made from its tensors and from the few numbers of its metadata that they do not say.

    Args:
        path: the file, for messages.
        text: its metadata, a JSON object with keys of peft's LoraConfig after `transformer.`.
        ranks: of each module that it adapts, see adapter_ranks.
        use_dora: whether the tensors are those of DoRA.

    Returns:
        arguments of LoraConfig that hold plain numbers and whole names of modules.

    Raises:
        ValueError: for keys that are unknown or not supported, and values that do not fit the tensors.
    """
    found = _object(path, text)
    _require_known(path, found)
    rank, _ = Counter(ranks.values()).most_common(1)[0]
    _require_ranks(path, found, ranks)
    if not isinstance(found.get("use_rslora", False), bool):
        raise ValueError(
            f"{path}: its metadata say use_rslora: {found['use_rslora']!r}, which is neither true nor false."
        )
    return {
        "r": rank,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "lora_alpha": _number(path, "lora_alpha", found.get("lora_alpha", rank)),
        "alpha_pattern": _by_module(path, "alpha_pattern", found.get("alpha_pattern") or {}, ranks),
        "use_rslora": found.get("use_rslora", False),
        "use_dora": use_dora,
        "target_modules": sorted(ranks),
    }


def config_of_alphas(
    path: Path, alphas: Mapping[str, torch.Tensor], ranks: Mapping[str, int], use_dora: bool
) -> dict[str, Any]:
    """The config of an adapter whose scales are alpha / rank by a tensor of each module, and 1 where there is none.

    Raises:
        ValueError: for an alpha that is no number above 0.
    """
    rank, _ = Counter(ranks.values()).most_common(1)[0]
    values = {module: _number(path, f"{module}.alpha", _item(alphas[module])) for module in alphas if module in ranks}
    return {
        "r": rank,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "lora_alpha": rank,
        "alpha_pattern": {
            module: values.get(module, own) for module, own in ranks.items() if values.get(module, own) != rank
        },
        "use_rslora": False,
        "use_dora": use_dora,
        "target_modules": sorted(ranks),
    }


def _item(tensor: torch.Tensor) -> Any:
    return tensor.item() if tensor.numel() == 1 else list(tensor.shape)


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata of the adapter are no JSON: {str(error)[:200]}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: the metadata of the adapter are no object of keys.")
    return {key.removeprefix("transformer."): value for key, value in content.items()}


def _require_known(path: Path, found: Mapping[str, Any]) -> None:
    """Raises ValueError for keys of no LoRA, and for kinds of LoRA that are not supported."""
    usual = LoraConfig().to_dict()
    for key, value in found.items():
        if key in (*NUMBERS, *UNUSED):
            continue
        if key not in usual:
            raise ValueError(
                f"{path}: its metadata have the unknown key {key[:100]!r}. Write the adapter again without it."
            )
        if value and value != usual[key]:
            raise ValueError(f"{path}: its metadata say {key}: {str(value)[:100]}, which is not supported.")


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6 or not math.isfinite(value):
        raise ValueError(f"{path}: its metadata say {key}: {str(value)[:100]}, which is no number above 0.")
    return value


def _require_ranks(path: Path, found: Mapping[str, Any], ranks: Mapping[str, int]) -> None:
    """Raises ValueError for metadata by which a module has another rank than its tensors have."""
    usual = found.get("r")
    if usual is not None and usual not in ranks.values():
        _number(path, "r", usual)  # may be that of no module
    own = _by_module(path, "rank_pattern", found.get("rank_pattern") or {}, ranks)
    for module, rank in ranks.items():
        said = own.get(module, usual)
        if said is not None and said != rank:
            raise ValueError(f"{path}: its metadata say r: {said!r} of {module}, its tensors have {rank}.")


def _by_module(path: Path, key: str, pattern: Any, ranks: Mapping[str, int]) -> dict[str, float]:
    """Values by ends of names (`^`: by whole ones), which are no regular expressions here, as values by whole names.

    Of several that fit a name, the first holds, as in peft.
    """
    if not isinstance(pattern, dict) or not all(MODULE_END.fullmatch(end) for end in pattern):
        raise ValueError(f"{path}: its metadata's {key} holds more than names of modules: {str(pattern)[:100]}.")
    places = {end: number for number, end in enumerate(pattern)}
    values: dict[str, float] = {}
    for module in ranks:
        parts = module.split(".")
        ends = [f"^{module}", *(".".join(parts[k:]) for k in range(len(parts)))]
        fitting = [end for end in ends if end in places]
        if fitting:
            end = min(fitting, key=places.__getitem__)
            values[module] = _number(path, f"{key}.{end}", pattern[end])
    return values

"""A folder of a transformer's weights in the published layout: whether it is all there. Imports nothing heavy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnitune.config.experiment.training import ParameterGroup, trained_names
from omnitune.errors import cut
from omnitune.io.model_files.part_configs import read_part
from omnitune.io.model_files.weights import read_weights_header, weight_map

CLASS = "OmniGen2Transformer2DModel"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
ATTENTION = ("norm_k", "norm_q", "to_k", "to_out.0", "to_q", "to_v")
BLOCK = (
    *(f"attn.{name}.weight" for name in ATTENTION),
    *(f"feed_forward.linear_{number}.weight" for number in (1, 2, 3)),
    *(f"{name}.weight" for name in ("ffn_norm1", "ffn_norm2", "norm2")),
)
MODULATION = ("norm1.linear.bias", "norm1.linear.weight", "norm1.norm.weight")
LINEAR = (
    "norm_out.linear_1",
    "norm_out.linear_2",
    "ref_image_patch_embedder",
    "time_caption_embed.caption_embedder.1",
    "time_caption_embed.timestep_embedder.linear_1",
    "time_caption_embed.timestep_embedder.linear_2",
    "x_embedder",
)
# Beyond any model of this architecture: what its names are told by where its size is not known.
LARGEST = {"num_layers": 200, "num_refiner_layers": 20}
SINGLE = ("image_index_embedding", "time_caption_embed.caption_embedder.0.weight")


def parameter_names(config: Mapping[str, Any]) -> set[str]:
    """Names of all parameters of the transformer with these init arguments."""
    refiners, layers = config.get("num_refiner_layers", 2), config.get("num_layers", 32)
    names = {*SINGLE, *(f"{module}.{part}" for module in LINEAR for part in ("weight", "bias"))}
    for block, count in (("noise_refiner", refiners), ("ref_image_refiner", refiners), ("layers", layers)):
        names |= {f"{block}.{number}.{part}" for number in range(count) for part in (*BLOCK, *MODULATION)}
    return names | {f"context_refiner.{n}.{part}" for n in range(refiners) for part in (*BLOCK, "norm1.weight")}


def linear_layers(names: Iterable[str]) -> list[str]:
    """The linear layers that have such parameters, sorted; all others with a weight are norms."""
    weights = {name.removesuffix(".weight") for name in names if name.endswith(".weight") and name not in SINGLE}
    return sorted(name for name in weights if "norm" not in name.rpartition(".")[2])


def trained_layers(names: Iterable[str], linear: Iterable[str], groups: Sequence[ParameterGroup] | None) -> list[str]:
    """The linear layers whose weights are trained, which the format `extracted` makes factors of.

    Args:
        names: of all parameters.
        linear: of all linear layers.
        groups: train.parameter_groups.

    Raises:
        ValueError: as `trained_names`, and where there is none.
    """
    trained = trained_names(names, groups)
    layers = [name for name in linear if f"{name}.weight" in trained]
    if not layers:
        raise ValueError(
            "train.parameter_groups: trains no weight of a linear layer, of which alone the format extracted makes a "
            "LoRA. Take extracted out of convert.formats, or train some, as with the pattern `*.attn.to_q.weight`."
        )
    return layers


def transformer_files(folder: Path) -> list[Path]:
    """The files of a transformer's folder that are loaded, sorted."""
    return sorted([folder / "config.json", *folder.glob("diffusion_pytorch_model*.safetensors*")])


def require_transformer(folder: Path, key: str) -> dict[str, Any]:
    """Looks whether a folder of weights is whole: its config, its files, the names in their headers.

    Args:
        folder: in the published layout.
        key: what names it, for messages.

    Returns:
        the content of its config.json.

    Raises:
        ValueError: for the first thing that is missing or damaged.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{key}: {folder} is no folder. Name one with config.json and diffusion_pytorch_model*.safetensors."
        )
    config = _config(folder, key)
    index, single = folder / INDEX, folder / INDEX.removesuffix(".index.json")
    if not index.is_file() and not single.is_file():
        others = sorted(path.name for path in folder.iterdir())
        raise ValueError(
            f"{key}: {folder} has neither {single.name} nor {INDEX}; it holds {', '.join(others[:6]) or 'nothing'}."
        )
    files = sorted({folder / file for file in weight_map(index).values()}) if index.is_file() else [single]
    found = {name for path in files for name in read_weights_header(path).shapes}
    expected = parameter_names(config)
    for kind, names in (("lacks", expected - found), ("has besides", found - expected)):
        if names:
            raise ValueError(
                f"{key}: {folder} {kind} {len(names)} of the {len(expected)} tensors that its config.json asks for: "
                f"{_some(names)}."
            )
    return config


def _config(folder: Path, key: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{key}: {path} is missing, which says the architecture. Take it from where the weights are from."
        )
    config = read_part(folder, "transformer")
    name = config.get("_class_name", CLASS)
    if name != CLASS:
        raise ValueError(f"{key}: {path} is of a {name}, not of OmniGen2's transformer ({CLASS}).")
    return config


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(map(cut, listed[:3])) + (", .." if len(listed) > 3 else "")

"""LoRA adapters of the transformer, and their file in the published layout.

The file is `pytorch_lora_weights.safetensors` with keys `transformer.<module>.lora_A.weight` and `lora_B.weight`, and
with DoRA `lora_magnitude_vector`. Without more, alpha equals the rank. The adapter's config travels in the file's
metadata under `lora_adapter_metadata`, as diffusers writes it, so that another alpha and rsLoRA survive. Files of other
tools are read as well: names.py.
"""

import difflib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from huggingface_hub import hf_hub_download
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from omnitune.io.files import atomic_path
from omnitune.io.json_object import read_json
from omnitune.io.model_files.weights import read_weights_header
from omnitune.io.places import is_local
from omnitune.models.files import require_finite
from omnitune.models.lora.base_fingerprint import model_fingerprint, recorded_base, warn_of_other_base
from omnitune.models.lora.metadata import adapter_ranks, checked_metadata, config_of_alphas
from omnitune.models.lora.names import ALPHA, FACTORS, MAGNITUDE, PEFT_PREFIX, PREFIX, AdapterNames, read_names
from omnitune.paths import ADAPTER_FILE, COMFYUI_ADAPTER_FILE, PEFT_CONFIG_FILE, PEFT_FILE, adapter_file

METADATA_KEY = "lora_adapter_metadata"
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")


def linear_names(model: Any) -> list[str]:
    """Names of a model's linear layers, in its order; of those that have an adapter, as without it."""
    found = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".lora_" not in name)
    return [name.removesuffix(".base_layer") for name in found]


def resolve_targets(model: Any, targets: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter, in the model's order.

    Args:
        model: without adapters.
        targets: ends of names (`to_q`, `feed_forward.linear_1`) or shell patterns of whole names (`layers.*.attn.*`);
            None means TARGET_MODULES.

    Raises:
        ValueError: for an entry that fits no linear layer.
    """
    names = linear_names(model)
    chosen: set[str] = set()
    for entry in TARGET_MODULES if targets is None else targets:
        if any(sign in entry for sign in "*?["):
            found = [name for name in names if fnmatchcase(name, entry)]
        else:
            found = [name for name in names if f".{name}".endswith(f".{entry}")]
        if not found:
            depth = entry.count(".") + 1
            ends = {".".join(name.split(".")[-depth:]) for name in names}
            near = difflib.get_close_matches(entry, sorted({*names, *ends}), n=3, cutoff=0.4) or sorted(ends)
            raise ValueError(
                f"train.lora_target_modules: {entry!r} fits no linear layer of the transformer. Near: "
                f"{', '.join(near[:10])}."
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def lora_config(
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] = TARGET_MODULES,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> LoraConfig:
    """Config of an adapter for `model.add_adapter`; Gaussian start, so that a new adapter changes nothing.

    Args:
        rank: of the two factors.
        alpha: the adapter is scaled by alpha / rank; None means rank.
        dropout: on the adapter's input, in training.
        target_modules: names of the Linear layers that get one, or their endings.
        use_dora: DoRA (arXiv 2402.09353), with a magnitude for each output.
        use_rslora: rsLoRA (arXiv 2312.03732), scaled by alpha / sqrt(rank).
    """
    if rank < 1:
        raise ValueError(f"lora rank = {rank} must be at least 1")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        init_lora_weights="gaussian",
        target_modules=list(target_modules),
        use_dora=use_dora,
        use_rslora=use_rslora,
    )


def published_name(name: str, adapter_name: str = "default") -> str | None:
    """Name in the file of an adapter's tensor, with or without the adapter's name in it; None for any other tensor."""
    match = re.fullmatch(rf"(.+\.lora_(?:A|B|magnitude_vector))(?:\.{re.escape(adapter_name)})?(?:\.weight)?", name)
    if match is None:
        return None
    return match[1] if match[1].endswith(MAGNITUDE) else f"{match[1]}.weight"


def lora_state_dict(
    source: nn.Module | Mapping[str, torch.Tensor], adapter_name: str = "default"
) -> dict[str, torch.Tensor]:
    """The adapter's tensors: `<module>.lora_A.weight`, `<module>.lora_B.weight` and `<module>.lora_magnitude_vector`.

    Args:
        source: a model with the adapter, or its (gathered) state dict, base weights included or not.
        adapter_name: which adapter.

    Raises:
        ValueError: when the source has no such adapter.
    """
    state_dict = source.state_dict() if isinstance(source, nn.Module) else source
    named = ((published_name(name, adapter_name), tensor) for name, tensor in state_dict.items())
    adapter = {name: tensor for name, tensor in named if name is not None}
    if not adapter:
        raise ValueError(f"no LoRA adapter named '{adapter_name}' among {len(state_dict)} tensors")
    return adapter


def save_lora(
    folder: str | Path,
    state_dict: Mapping[str, torch.Tensor],
    config: LoraConfig | Mapping[str, Any] | None = None,
    weight_name: str = ADAPTER_FILE,
) -> Path:
    """Write an adapter in the published layout, under a temporary name first.

    Args:
        folder: made where it is missing.
        state_dict: as from lora_state_dict.
        config: of the adapter; None leaves alpha = rank to the reader.
        weight_name: of the file.

    Returns:
        the path of the file.
    """
    metadata = {"format": "pt"}
    if config is not None:
        metadata[METADATA_KEY] = metadata_text(config)
    path = Path(folder) / weight_name
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    return path


def adapter_scale(alpha: float, rank: int, use_rslora: bool = False) -> float:
    """What the product of an adapter's factors is multiplied by."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def metadata_text(config: LoraConfig | Mapping[str, Any]) -> str:
    """An adapter's config as its file carries it."""
    values = config.to_dict() if isinstance(config, LoraConfig) else dict(config)
    # a set has no order: sorted, equal adapters give equal files
    values = {PREFIX + key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return json.dumps(values, indent=2, sort_keys=True)


def adapter_alphas(config: Mapping[str, Any]) -> dict[str, float]:
    """Alpha of each module, by the config of an adapter that read_lora has read."""
    return {module: config["alpha_pattern"].get(module, config["lora_alpha"]) for module in config["target_modules"]}


class AdapterHeader(NamedTuple):
    """What an adapter's file says of itself.

    Attributes:
        path: the file.
        names: of its tensors, as they were read.
        shapes: of its tensors, named as lora_state_dict names them.
        config: arguments of LoraConfig; where the file says nothing of a scale, alpha is the rank of each module.
        base: fingerprint of the weights that it was trained over; None where the file does not say.
    """

    path: Path
    names: AdapterNames
    shapes: dict[str, list[int]]
    config: dict[str, Any]
    base: str | None


def read_lora(
    source: str | Path, weight_name: str = ADAPTER_FILE, modules: Iterable[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read an adapter of any tool from its file, its folder, or the repository with this id.

    Args:
        source: where it is.
        weight_name: of the file in a folder or repository; in a folder without it, peft's or ComfyUI's is taken.
        modules: names of the model's linear layers, by which kohya's names (`lora_unet_..`) are told apart.

    Returns:
        the tensors as lora_state_dict names them, and the adapter's config, see AdapterHeader.

    Raises:
        ValueError, FileNotFoundError: as of read_lora_header, and for numbers that are not finite.
    """
    found = read_lora_header(source, weight_name, modules)
    return read_factors(found), found.config


def read_factors(found: AdapterHeader) -> dict[str, torch.Tensor]:
    """The tensors of an adapter, as lora_state_dict names them; ValueError for numbers that are not finite."""
    tensors = {found.names.plain[name]: tensor for name, tensor in load_file(found.path).items()}
    require_finite(tensors, found.path)
    return {name: tensor for name, tensor in tensors.items() if name in found.shapes}


def read_lora_header(source: str | Path, weight_name: str = ADAPTER_FILE, modules: Iterable[str] = ()) -> AdapterHeader:
    """What an adapter's file says of itself; its factors are not read. The arguments are those of read_lora.

    Raises:
        ValueError: for a file that is damaged, with other tensors than LoRA pairs, which are named, or with metadata
            that do not fit these.
        FileNotFoundError: for a folder without the file.
    """
    path = _adapter_path(source, weight_name)
    header, texts, _ = read_weights_header(path)
    try:
        names = read_names(header, modules)
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    if names.unknown or not names.plain:
        raise ValueError(_unknown_names(path, names.unknown, len(header)))
    shapes = {plain: header[name] for name, plain in names.plain.items() if not plain.endswith(ALPHA)}
    ranks, use_dora = adapter_ranks(path, shapes), any(name.endswith(MAGNITUDE) for name in shapes)
    with safe_open(path, framework="pt") as file:
        alphas = {
            plain.removesuffix(ALPHA): file.get_tensor(name)
            for name, plain in names.plain.items()
            if plain.endswith(ALPHA)
        }
    text, base = texts.get(METADATA_KEY), recorded_base(path, texts)
    if text is None and names.prefixes == {PEFT_PREFIX} and (path.parent / PEFT_CONFIG_FILE).is_file():
        text = json.dumps(read_json(path.parent / PEFT_CONFIG_FILE))
    if alphas or text is None:
        return AdapterHeader(path, names, shapes, config_of_alphas(path, alphas, ranks, use_dora), base)
    return AdapterHeader(path, names, shapes, checked_metadata(path, text, ranks, use_dora), base)


def _adapter_path(source: str | Path, weight_name: str) -> Path:
    path = Path(source)
    if path.is_dir():
        found = adapter_file(str(path), weight_name)
        if not found.is_file():
            raise FileNotFoundError(
                f"{found} does not exist: a LoRA folder holds {weight_name}, {PEFT_FILE} or {COMFYUI_ADAPTER_FILE}"
            )
        return found
    return path if is_local(str(source), "adapter") else Path(hf_hub_download(str(source), weight_name))


def _unknown_names(path: Path, unknown: Sequence[str], count: int) -> str:
    dora = any(name.endswith(".dora_scale") for name in unknown)
    note = (
        "; dora_scale is DoRA by another norm, which cannot be taken over: merge it where it was trained"
        if dora
        else ""
    )
    return (
        f"{path} is no LoRA of the transformer: {len(unknown)} of {count} tensors, such as {list(unknown[:3])}, are "
        f"not <module>.lora_A.weight and lora_B.weight (or lora_down, lora_up) of its modules in pairs, each with "
        f"lora_magnitude_vector or none{note}"
    )


def load_lora(
    model: Any, source: str | Path, adapter_name: str = "default", weight_name: str = ADAPTER_FILE, **kwargs: Any
) -> None:
    """Add the adapter at `source` (see read_lora) to a transformer and activate it; warns where it is of other weights.

    Raises:
        ValueError: when the adapter's modules are not among the model's, or the name is taken.
    """
    found = read_lora_header(source, weight_name, linear_names(model))
    tensors = read_factors(found)
    require_fitting(source, tensors, model)
    warn_of_other_base(found.path, found.base, model_fingerprint(model) if found.base else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
        model.load_lora_adapter(tensors, prefix=None, metadata=found.config, adapter_name=adapter_name, **kwargs)


def require_fitting(source: str | Path, tensors: Mapping[str, torch.Tensor], model: Any) -> None:
    """Raises ValueError for an adapter, as read_lora has read it, of modules or widths that the model does not have."""
    modules = adapted_modules(tensors)
    layers = {name.removesuffix(".base_layer"): module for name, module in model.named_modules()}
    missing = sorted(modules - layers.keys())
    if missing:
        raise ValueError(
            f"{source} adapts {len(missing)} modules that the model does not have, such as {missing[:3]}: "
            "it belongs to a model of another size"
        )
    for module in sorted(modules):
        wide = getattr(layers[module], "in_features", None), getattr(layers[module], "out_features", None)
        found = tensors[module + FACTORS[0]].shape[1], tensors[module + FACTORS[1]].shape[0]
        if wide != found:
            raise ValueError(
                f"{source} belongs to a model of another size: {module} takes {wide[0]} features to {wide[1]}, "
                f"the adapter {found[0]} to {found[1]}"
            )


def adapted_modules(tensors: Iterable[str]) -> set[str]:
    """Names of the modules that an adapter's tensors, by their names as lora_state_dict names them, belong to."""
    return {name.rsplit(".lora_", 1)[0] for name in tensors}


class OmniGen2LoraLoaderMixin(LoraBaseMixin):
    """Adapters of the pipeline, whose transformer alone has any; the rest (set_adapters, unload) is diffusers'."""

    _lora_loadable_modules = ["transformer"]

    def load_lora_weights(  # type: ignore[override]
        self, source: str | Path, adapter_name: str = "default", weight_name: str = ADAPTER_FILE
    ) -> None:
        """Add an adapter to the transformer and activate it; see load_lora."""
        load_lora(self.transformer, source, adapter_name, weight_name, _pipeline=self)  # type: ignore[attr-defined]

    @classmethod
    def save_lora_weights(  # type: ignore[override]
        cls,
        save_directory: str | Path,
        transformer_lora_layers: Mapping[str, torch.Tensor],
        transformer_lora_adapter_metadata: LoraConfig | Mapping[str, Any] | None = None,
        weight_name: str = ADAPTER_FILE,
    ) -> None:
        """Write an adapter; see save_lora."""
        save_lora(save_directory, transformer_lora_layers, transformer_lora_adapter_metadata, weight_name)

    def fuse_lora(  # type: ignore[override]
        self, components: Sequence[str] | None = None, lora_scale: float = 1.0, **kwargs: Any
    ) -> None:
        """Add the active adapters, times lora_scale, to the transformer's weights."""
        super().fuse_lora(list(components or self._lora_loadable_modules), lora_scale, **kwargs)

    def unfuse_lora(self, components: Sequence[str] | None = None, **kwargs: Any) -> None:
        """Take them off again."""
        super().unfuse_lora(list(components or self._lora_loadable_modules), **kwargs)

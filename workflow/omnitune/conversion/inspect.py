"""What a checkpoint, a transformer, a pipeline or an adapter is, from its headers: loads no weights, runs no code."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omnitune.checkpoints.states import read_state
from omnitune.conversion.read import read_checkpoint, some
from omnitune.conversion.tensors import State
from omnitune.io.files import sha256_of
from omnitune.io.model_files.weights import read_header, read_weights_header
from omnitune.models.lora.base_fingerprint import folder_fingerprint
from omnitune.models.lora.lora import AdapterHeader, adapted_modules, adapter_alphas, adapter_scale, read_lora_header
from omnitune.models.lora.names import ALPHA, FACTORS, KOHYA_PREFIX, MAGNITUDE, PEFT_PREFIX, PREFIX
from omnitune.paths import (
    ADAPTER_FILE,
    AVERAGE_FOLDER,
    CONVERSION_FILE,
    METADATA_FILE,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    STATE_FILE,
)
from omnitune.pretrained.files import INDEX, PARTS
from omnitune.pretrained.transformer import LARGEST, parameter_names, require_transformer, transformer_files

Facts = dict[str, Any]


def inspect(path: Path) -> Facts:
    """Facts about what lies at a path, by name; which are there depends on what it is.

    Raises:
        ValueError: for what is none of these, damaged, or incomplete, with the reason.
    """
    path = Path(path)
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path}: {'is neither a file nor a folder' if path.exists() else 'does not exist'}.")
    if path.is_dir():
        if (path / INDEX).is_file():
            return _pipeline(path)
        if (path / ADAPTER_FILE).is_file() or (path / PEFT_FILE).is_file():
            return _adapter(path)
        if (path / "config.json").is_file():
            return _transformer(path)
        files = sorted(path.glob("*.safetensors"))
        if (path / CONVERSION_FILE).is_file() and len(files) == 1:
            return _file(files[0])
        return _checkpoint(path)
    return _file(path) if path.suffix == ".safetensors" else _checkpoint(path)


def _pipeline(folder: Path) -> Facts:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    facts = {"kind": "pipeline", "parts": [part for part in PARTS if part not in missing], "missing": missing}
    return facts | {f"transformer.{name}": value for name, value in _transformer(folder / "transformer").items()}


def _transformer(folder: Path) -> Facts:
    """A folder in the published layout."""
    config = require_transformer(folder, str(folder))
    files = [path for path in transformer_files(folder) if path.suffix == ".safetensors"]
    headers = [read_header(path) for path in files]
    programs = ["omnitune", "published code", *(["ComfyUI"] if len(files) == 1 else [])]
    return {
        "kind": "transformer",
        "format": f"published layout, {len(files)} file{'s' if len(files) > 1 else ''}",
        **_sizes((shape, header.dtypes[name]) for header in headers for name, shape in header.shapes.items()),
        "layers": config.get("num_layers", 32),
        "hidden_size": config.get("hidden_size", 2520),
        **_fingerprint(folder, files),
        "weights_fingerprint": folder_fingerprint(folder),
        "loads_in": programs,
    }


def _file(path: Path) -> Facts:
    """A .safetensors file: an adapter, or a model in one file."""
    header = read_header(path)
    if any("lora" in name for name in header.shapes):
        return _adapter(path)
    counts = {  # of different names: a number in one may be any
        block: len({name.split(".")[1] for name in header.shapes if name.startswith(f"{block}.")})
        for block in ("layers", "noise_refiner")
    }
    expected = parameter_names({"num_layers": counts["layers"], "num_refiner_layers": counts["noise_refiner"]})
    if header.shapes.keys() != expected:
        return _checkpoint(path)
    read_weights_header(path)
    return {
        "kind": "transformer",
        "format": "one file of published names",
        **_sizes((shape, header.dtypes[name]) for name, shape in header.shapes.items()),
        "layers": counts["layers"],
        **_fingerprint(path.parent, [path]),
        "loads_in": ["ComfyUI"],
    }


def _adapter(path: Path) -> Facts:
    modules = {name.removesuffix(".weight") for name in parameter_names(LARGEST)}
    found = read_lora_header(path, modules=modules)
    strange = adapted_modules(found.shapes) - modules
    if strange:
        raise ValueError(
            f"{found.path}: adapts {len(strange)} modules that OmniGen2's transformer does not have: "
            f"{some(strange, 3)}. It belongs to another model."
        )
    header = read_header(found.path)
    alphas = adapter_alphas(found.config)
    ranks = {
        name.removesuffix(FACTORS[0]): shape[0] for name, shape in found.shapes.items() if name.endswith(FACTORS[0])
    }
    scales = sorted({adapter_scale(alphas[module], ranks[module], found.config["use_rslora"]) for module in ranks})
    dora = any(name.endswith(MAGNITUDE) for name in found.shapes)
    ends = Counter(
        ".".join(part for part in module.split(".") if not part.isdigit()).split(".", 1)[-1] for module in ranks
    )
    return {
        "kind": "DoRA" if dora else "LoRA",
        "format": _names_of(found),
        **_sizes((shape, header.dtypes[name]) for name, shape in header.shapes.items()),
        "rank": sorted(set(ranks.values())),
        "scale": [round(scale, 6) for scale in scales],
        "targets": dict(sorted(ends.items())),
        "modules": len(adapted_modules(found.shapes)),
        **_fingerprint(found.path.parent, [found.path]),
        "base_fingerprint": found.base,
        "loads_in": _programs(found, scales, dora),
    }


def _names_of(found: AdapterHeader) -> str:
    before = ", ".join(sorted(repr(prefix) if prefix else "nothing" for prefix in found.names.prefixes))
    return f"{before} before the modules"


def _programs(found: AdapterHeader, scales: list[float], dora: bool) -> list[str]:
    prefixes, programs = found.names.prefixes, ["omnitune"]
    alphas = any(plain.endswith(ALPHA) for plain in found.names.plain.values())
    if not alphas and all(name == PREFIX + plain for name, plain in found.names.plain.items()):
        programs += ["diffusers"]
        # it reads no metadata: the scale is 1 there
        programs += ["published code"] if scales == [1.0] else []
    if prefixes == {PEFT_PREFIX} and (found.path.parent / PEFT_CONFIG_FILE).is_file():
        programs += ["peft"]
    if (found.path.parent / PEFT_FILE).is_file() and (found.path.parent / PEFT_CONFIG_FILE).is_file():
        programs += [] if "peft" in programs else ["peft"]
    # nor does it: the scale is that of .alpha, or 1
    if prefixes <= {"diffusion_model.", "", KOHYA_PREFIX} and not dora and (alphas or scales == [1.0]):
        programs += ["ComfyUI"]
    return programs


def _checkpoint(path: Path) -> Facts:
    """What a trainer has left: ours with its state, a distributed checkpoint, a file of torch.save."""
    state = read_checkpoint(path)
    facts: Facts = {"kind": "checkpoint"}
    if path.is_dir() and (path / STATE_FILE).is_file():
        saved = read_state(path)
        average = (path / AVERAGE_FOLDER / METADATA_FILE).is_file()
        facts |= {
            "step": saved.step,
            "average": average,
            "lora": saved.lora,
            "fingerprint": sha256_of(path / STATE_FILE),
        }
    adapters = sum(name.endswith(FACTORS[0]) or ".lora_A." in name for name in state)
    return facts | {
        **_sizes((list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in state.values()),
        "adapters": adapters,
        "first": _first(state),
        "loads_in": ["omnitune (convert)"],
    }


def _first(state: State) -> list[str]:
    return sorted(state)[:3]


def _sizes(tensors: Iterable[tuple[list[int], str]]) -> Facts:
    """Tensors, parameters and numbers of each type."""
    count, dtypes = 0, Counter[str]()
    for shape, dtype in tensors:
        numel = 1
        for side in shape:
            numel *= side
        count += 1
        dtypes[dtype] += numel
    return {"tensors": count, "parameters": sum(dtypes.values()), "dtypes": dict(sorted(dtypes.items()))}


def _fingerprint(folder: Path, files: list[Path]) -> Facts:
    """By the manifest of a conversion, which has the hashes of its files; of a file without any, by its content."""
    manifest = folder / CONVERSION_FILE
    if manifest.is_file():
        return {"fingerprint": sha256_of(manifest), "written_by": "omnitune convert"}
    return {"fingerprint": sha256_of(files[0]) if len(files) == 1 else None}

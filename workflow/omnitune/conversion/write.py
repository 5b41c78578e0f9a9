"""Write weights in one of the formats, and see that the programs that it is for read them as they should."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnitune.config.experiment.convert import EXTRACTED_RANK, SHARD_SIZE
from omnitune.conversion.adapters import Adapter, folded, merged
from omnitune.conversion.card import CARD_FILE, MARK
from omnitune.conversion.checkpoint import hashing_thread
from omnitune.conversion.extract import FILE, describe, extract, verify_extraction
from omnitune.conversion.formats import comfyui, diffusers, pipeline
from omnitune.conversion.read import read_published
from omnitune.conversion.tensors import PRECISIONS, State, open_safetensors
from omnitune.conversion.verify import verify_adapter, verify_model
from omnitune.io.files import atomic_folder, sha256_of, write_json
from omnitune.models.lora.base_fingerprint import BASE_KEY
from omnitune.paths import (
    ADAPTER_FILE,
    COMFYUI_MODEL_FILE,
    CONVERSION_FILE,
    FORMATS,
    PEFT_CONFIG_FILE,
    PEFT_FILE,
    STATE_FILE,
)
from omnitune.pretrained.files import INDEX, PARTS

OWN_FILES = (
    "config.json",
    CONVERSION_FILE,
    "diffusion_pytorch_model*",
    ADAPTER_FILE,
    PEFT_FILE,
    PEFT_CONFIG_FILE,
    "comfyui_*.safetensors",
    ".snakemake*",
)


Verify = Callable[[], list[dict[str, Any]]]  # reads what was written; returns what it found, for each program


@dataclass(frozen=True)
class Target:
    """What to write.

    Attributes:
        format: one of FORMATS.
        dtype: fp32, bf16 or fp16; None keeps that of the weights.
        max_shard_size: of a weight file, such as "10GB"; ComfyUI's is one file in any case.
        base: pipeline folder, whose other parts the format `pipeline` copies.
        rank: of the adapter that the format `extracted` writes.
    """

    format: str = FORMATS[0]
    dtype: str | None = None
    max_shard_size: str = "10GB"
    base: Path | None = None
    rank: int = EXTRACTED_RANK

    def __post_init__(self) -> None:
        for key, value, known in (("format", self.format, FORMATS), ("dtype", self.dtype, (None, *PRECISIONS))):
            if value not in known:
                raise ValueError(f"{key}: {value!r} is not allowed: needs one of {', '.join(filter(None, known))}.")
        if not re.fullmatch(SHARD_SIZE, self.max_shard_size):
            raise ValueError(f"max_shard_size: {self.max_shard_size!r} is not allowed: needs KB, MB or GB, as in 5GB.")
        if self.format == "pipeline" and self.base is None:
            raise ValueError("format pipeline: give the folder of the base pipeline, whose other parts are copied.")


@dataclass(frozen=True)
class Weights:
    """What training has left.

    Attributes:
        config: init arguments of the transformer.
        model: its weights, those under the adapters; None where an adapter alone is written.
        adapters: each with its strength.
        targets: names of the modules that an adapter of ours adapts, or their endings.
        base: fingerprint of the weights that an adapter was trained over; None where it is not known.
        start: the weights that training started from, where what it has changed is to be extracted from `model`, in
            the linear layers `targets`.
    """

    config: Mapping[str, Any]
    model: State | None
    adapters: Sequence[tuple[Adapter, float]] = ()
    targets: Sequence[str] = ()
    base: str | None = None
    start: State | None = None


def is_merged(format: str, adapter: Adapter) -> bool:
    """Whether an adapter is merged in this format: for ComfyUI a DoRA, which is another thing there."""
    return format in ("merged", "pipeline") or (format == "comfyui" and adapter.use_dora)


def write_weights(
    save_path: Path,
    weights: Weights,
    target: Target,
    facts: Callable[[], dict[str, Any]],
    card: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """Writes and verifies weights; nothing is left where they are not what they should be.

    Args:
        save_path: the folder, which is replaced.
        weights: what to write.
        target: how.
        facts: tells, once they are written, what is known of them; raises ValueError where they were read from files
            that have turned out to be none of training's.
        card: makes README.md of the content of conversion.json.

    Returns:
        `facts` with what was written and how it was verified: the content of conversion.json.
    """
    with atomic_folder(save_path) as partial, hashing_thread(wait=True) as thread:
        written, verify = _write(partial, weights, target)
        hashing = [thread.submit(sha256_of, path) for path in partial.rglob("*.safetensors")]  # which keeps the hashes
        verified = verify()
        for hashed in hashing:
            hashed.result()
        merges = weights.model is not None and len(weights.adapters) > 0
        report = {
            **facts(),
            "format": target.format,
            "merged": [strength for _, strength in weights.adapters] if merges else None,
            **written,
            "verified": verified,
        }
        if card:
            (partial / CARD_FILE).write_text(card(report), encoding="utf-8")
        report["files"] = {
            path.relative_to(partial).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        write_json(partial / CONVERSION_FILE, report)
        require_replaceable(save_path)  # once more: converting takes minutes
    return report


def _write(folder: Path, weights: Weights, target: Target) -> tuple[dict[str, Any], Verify]:
    """Writes the files; returns their dtype and the programs that load them, and what verifies them."""
    if weights.model is None:
        return _write_adapter(folder, weights, target)
    if weights.start is not None:
        return _write_extracted(folder, weights.model, weights.start, weights, target)
    state = merged(weights.model, weights.adapters)
    common = target.dtype and PRECISIONS[target.dtype]
    # a merge is computed in float32 and rounded to what the weights had
    state = {name: state[name].to(common or weights.model[name].dtype) for name in sorted(state)}
    if target.format == "comfyui":
        asked = comfyui.write_model(folder, state)
        written, programs = open_safetensors(folder / COMFYUI_MODEL_FILE), ["ComfyUI"]
    elif target.format == "pipeline":
        asked = pipeline.write_pipeline(folder, state, weights.config, target.max_shard_size, target.base)
        written, programs = read_published(folder / pipeline.TRANSFORMER), ["omnitune", "published code"]
    else:
        asked = diffusers.write_transformer(folder, state, weights.config, target.max_shard_size)
        written, programs = read_published(folder), ["omnitune", "published code"]
    if len(list(folder.glob("*.safetensors"))) == 1 and target.format != "comfyui":
        programs.append("ComfyUI")
    facts = {"dtype": _name(state), "loads_in": programs}
    names = " and ".join(programs)
    return facts, lambda: [verify_model(names, written, asked, weights.model, weights.adapters)]


def _write_adapter(folder: Path, weights: Weights, target: Target) -> tuple[dict[str, Any], Verify]:
    [(trained, _)] = weights.adapters
    adapter = trained if target.format == "comfyui" else folded(trained)
    dtype = PRECISIONS[target.dtype] if target.dtype else next(iter(adapter.tensors.values())).dtype
    tensors = {name: adapter.tensors[name].to(dtype) for name in sorted(adapter.tensors)}
    adapter = Adapter(tensors, adapter.alphas, adapter.use_rslora)
    facts = {BASE_KEY: weights.base} if weights.base else {}
    if target.format == "comfyui":
        comfyui.write_adapter(folder, adapter, facts)
        programs = ["ComfyUI"]
    else:
        diffusers.write_adapter(folder, adapter, weights.targets, facts)
        programs = ["published code", "diffusers", "peft"]
    written = {"dtype": _name(tensors), "loads_in": ["omnitune", *programs]}
    return written, lambda: verify_adapter(folder, trained, dtype, programs)


def _write_extracted(
    folder: Path, tuned: State, start: State, weights: Weights, target: Target
) -> tuple[dict[str, Any], Verify]:
    dtype = PRECISIONS[target.dtype or "fp32"]
    adapter, explained = extract(folder, tuned, start, weights.targets, target.rank, dtype)
    facts = {BASE_KEY: weights.base} if weights.base else {}
    diffusers.write_adapter(folder, adapter, weights.targets, facts)
    comfyui.write_adapter(folder, adapter, facts)
    programs = ["published code", "diffusers", "peft", "ComfyUI"]
    written = {
        **describe(adapter),
        "dtype": _name(adapter.tensors),
        "loads_in": ["omnitune", *programs],
        "extracted": explained,
    }

    def verify() -> list[dict[str, Any]]:
        found = verify_extraction(folder, adapter, tuned, start, programs)
        (folder / FILE).unlink()
        return found

    return written, verify


def _name(state: State) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))


def require_replaceable(save_path: Path, sources: Iterable[Path] = ()) -> None:
    """Raises ValueError for a folder with more in it than a conversion wrote: a typo must not cost someone's files.

    Weights of others have the same names, so it must hold conversion.json; beside the state of a training, where
    Snakemake removes that file before the rule writes anew, the names are enough. Nor is it written over, into or
    around one of the `sources`, that are read.
    """
    asked = save_path.resolve()
    for source in sources:
        read = source.resolve()
        if asked == read or read in asked.parents or asked in read.parents:
            raise ValueError(f"{save_path}: {source} is read for this, and would be changed; name another folder.")
    if save_path.exists() and not save_path.is_dir():
        raise ValueError(f"{save_path}: is a file; name the folder to write.")
    foreign = [entry.name for entry in (save_path.iterdir() if save_path.is_dir() else ()) if not _is_own(entry)]
    if foreign:
        raise ValueError(
            f"{save_path}: holds {', '.join(sorted(foreign)[:5])}, which no conversion wrote: name another."
        )
    known = (save_path / CONVERSION_FILE).is_file() or (save_path.parent / STATE_FILE).is_file()
    if save_path.is_dir() and any(save_path.iterdir()) and not known:
        raise ValueError(
            f"{save_path}: holds weights without {CONVERSION_FILE}, which may be someone's own: name another folder, "
            "or remove it."
        )


def _is_own(entry: Path) -> bool:
    if entry.is_dir():  # of a pipeline, beside its index
        return entry.name in PARTS and (entry.parent / INDEX).is_file()
    if entry.name == CARD_FILE:  # a person's own is none of ours
        return MARK in entry.read_text(encoding="utf-8", errors="replace")
    return entry.name == INDEX or any(entry.match(pattern) for pattern in OWN_FILES)

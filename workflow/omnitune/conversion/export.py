"""Turn a training checkpoint into the published diffusers layout: a `transformer` or a `transformer_lora` folder."""

import shutil
from pathlib import Path
from typing import Any

import torch

from omnitune.config import ExperimentOptions
from omnitune.conversion.keys import (
    base_shapes_beside_lora,
    empty_transformer,
    full_shapes,
    lora_shapes,
    require_shapes,
    split_lora,
)
from omnitune.conversion.read import State, read_checkpoint
from omnitune.conversion.verify import verify
from omnitune.files import sha256_of, write_json
from omnitune.models import lora_config, save_lora
from omnitune.models.lora import TARGET_MODULES, WEIGHT_NAME

CONVERSION_FILE = "conversion.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OWN_FILES = ("config.json", CONVERSION_FILE, "diffusion_pytorch_model*", WEIGHT_NAME, ".snakemake*")


def convert(
    options: ExperimentOptions,
    model_path: Path,
    save_path: Path,
    transformer_config: dict[str, Any] | None = None,
    *,
    dtype: str | None = None,
    max_shard_size: str = "10GB",
) -> dict[str, Any]:
    """Exports a checkpoint's weights, loads the export again, compares every tensor and only then shows the folder.

    Args:
        options: the experiment: architecture, full-parameter or LoRA, rank and alpha.
        model_path: what `read_checkpoint` reads.
        save_path: the folder to write; an older conversion there is replaced.
        transformer_config: `transformer/config.json` of the base, needed where options.model.arch_opt is null.
        dtype: fp32, bf16 or fp16 of the saved weights; None keeps what the checkpoint holds.
        max_shard_size: largest weight file, such as "10GB".

    Returns:
        The content of `conversion.json`, which stands in the folder.

    Raises:
        ValueError: for a checkpoint that cannot be read or whose keys, shapes or rank do not fit.
    """
    model_path, save_path = Path(model_path), Path(save_path)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is not allowed: needs one of {', '.join(DTYPES)}.")
    _require_replaceable(save_path)
    config = architecture(options, transformer_config)
    state, base_keys = _checked_state(options, read_checkpoint(model_path), config, model_path)
    state = _cast(state, dtype, model_path)
    partial = save_path.with_name(f".{save_path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if options.train.lora_ft:
        _write_lora(partial, state, options)
    else:
        _write_transformer(partial, state, config, max_shard_size)
    verify(partial, state, config)
    report = _describe(options, model_path, state, base_keys, partial)
    write_json(partial / CONVERSION_FILE, report)
    _replace(partial, save_path)
    return report


def architecture(options: ExperimentOptions, transformer_config: dict[str, Any] | None) -> dict[str, Any]:
    """The transformer's init arguments, from `model.arch_opt` and the base's config; ValueError where they differ."""
    base = {key: value for key, value in (transformer_config or {}).items() if not key.startswith("_")}
    if options.model.arch_opt is None:
        if not base:
            raise ValueError(
                "model.arch_opt: null says that the architecture is the base's: give the base's transformer/config.json."
            )
        return base
    given = options.model.arch_opt.model_dump(mode="json")
    differing = [key for key in given if key in base and base[key] != given[key]]
    if differing:
        problems = "; ".join(f"{key}: {given[key]!r}, the base has {base[key]!r}" for key in differing)
        raise ValueError(f"model.arch_opt differs from the base's transformer/config.json: {problems}.")
    return given


def _checked_state(options: ExperimentOptions, state: State, config: dict[str, Any], where: Path) -> tuple[State, int]:
    """The tensors to export, and how many base tensors were found beside an adapter (0 for full parameters)."""
    model = empty_transformer(config)
    adapters, rest = split_lora(state)
    if not options.train.lora_ft:
        if adapters:
            raise ValueError(f"{where}: holds {len(adapters)} LoRA keys, but train.lora_ft is false in the options.")
        advice = "Check model.arch_opt, and that checkpoint and options belong to the same experiment."
        require_shapes(rest, full_shapes(model), str(where), advice)
        return rest, 0
    if not adapters:
        raise ValueError(f"{where}: holds no LoRA keys (<module>.lora_A.weight), but train.lora_ft is true.")
    _require_rank(adapters, options.train.lora_rank, where)
    advice = "Check model.arch_opt and train.lora_rank, and that checkpoint and options belong together."
    require_shapes(adapters, lora_shapes(model, options.train.lora_rank), str(where), advice)
    if rest:
        require_shapes(rest, base_shapes_beside_lora(model), f"{where} (base weights beside the LoRA)", advice)
    return adapters, len(rest)


def _require_rank(adapters: State, rank: int, where: Path) -> None:
    ranks = sorted({tensor.shape[0] for name, tensor in adapters.items() if ".lora_A." in name})
    if ranks != [rank]:
        found = ", ".join(map(str, ranks)) or "none"
        raise ValueError(
            f"{where}: the checkpoint's LoRA rank is {found}, train.lora_rank is {rank}: they must be equal."
        )


def _cast(state: State, dtype: str | None, where: Path) -> State:
    found = {tensor.dtype for tensor in state.values()}
    if dtype is None and len(found) > 1:
        names = ", ".join(sorted(str(one).removeprefix("torch.") for one in found))
        raise ValueError(f"{where}: its tensors have several dtypes ({names}): say which to save with `dtype`.")
    target = found.pop() if dtype is None else DTYPES[dtype]
    return {name: state[name].to(target).contiguous() for name in sorted(state)}


def _write_transformer(folder: Path, state: State, config: dict[str, Any], max_shard_size: str) -> None:
    model = empty_transformer(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def _write_lora(folder: Path, state: State, options: ExperimentOptions) -> None:
    config = lora_config(options.train.lora_rank, options.train.lora_alpha, options.train.lora_dropout)
    settings = {"r": config.r, "lora_alpha": config.lora_alpha, "target_modules": sorted(TARGET_MODULES)}
    save_lora(folder, state, settings)


def _describe(
    options: ExperimentOptions, model_path: Path, state: State, base_keys: int, folder: Path
) -> dict[str, Any]:
    lora = options.train.lora_ft
    rank = options.train.lora_rank
    return {
        "source": portable(model_path),
        "kind": "lora" if lora else "full",
        "keys": len(state),
        "base": base_keys,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        "lora": {"rank": rank, "alpha": options.train.lora_alpha or rank} if lora else None,
        "files": {
            path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }


def portable(path: Path) -> str:
    """The path as given; of one outside the working directory only its last parts, which mean the same elsewhere."""
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(*path.parts[-2:])
    return path.as_posix()


def _require_replaceable(save_path: Path) -> None:
    """A folder is replaced only where everything in it is a conversion's: a mistyped path must not cost someone's files."""
    if save_path.exists() and not save_path.is_dir():
        raise ValueError(f"{save_path}: is a file; name the folder to write.")
    foreign = [
        entry.name
        for entry in (save_path.iterdir() if save_path.is_dir() else ())
        if entry.is_dir() or not any(entry.match(pattern) for pattern in OWN_FILES)
    ]
    if foreign:
        raise ValueError(
            f"{save_path}: holds {', '.join(sorted(foreign)[:5])}, which no conversion wrote: name another."
        )


def _replace(partial: Path, save_path: Path) -> None:
    old = save_path.with_name(f".{save_path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if save_path.exists():
        save_path.rename(old)
    partial.rename(save_path)
    shutil.rmtree(old, ignore_errors=True)

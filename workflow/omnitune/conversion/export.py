"""Turn a training checkpoint into the published diffusers layout: a `transformer` or a `transformer_lora` folder."""

from pathlib import Path
from typing import Any

import torch

from omnitune.config import ExperimentOptions
from omnitune.config.training import trained_names
from omnitune.conversion.checkpoint import check_checkpoint
from omnitune.conversion.keys import (
    base_shapes_beside_lora,
    empty_transformer,
    full_shapes,
    lora_shapes,
    require_shapes,
    split_lora,
)
from omnitune.conversion.read import State, averaged_state, read_checkpoint
from omnitune.conversion.verify import verify
from omnitune.io.files import atomic_folder, portable, sha256_of, write_json
from omnitune.models import OmniGen2Transformer2DModel, read_transformer, save_lora
from omnitune.models.lora import FACTORS
from omnitune.paths import ADAPTER_FILE, AVERAGE_FOLDER, CONVERSION_FILE, MODEL_FOLDER
from omnitune.pretrained.weights import check_weights
from omnitune.training.adapter import lora_config_of
from omnitune.training.architecture import differing_keys, read_architecture

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OWN_FILES = ("config.json", CONVERSION_FILE, "diffusion_pytorch_model*", ADAPTER_FILE, ".snakemake*")


def convert(
    options: ExperimentOptions,
    model_path: Path,
    save_path: Path,
    transformer: Path | None = None,
    *,
    ema: bool = False,
    dtype: str | None = None,
    max_shard_size: str = "10GB",
) -> dict[str, Any]:
    """Exports a checkpoint's weights, loads the export again, compares every tensor and only then shows the folder.

    Args:
        options: the experiment: architecture, which parameters it trains, the adapter.
        model_path: what `read_checkpoint` reads.
        save_path: the folder to write; an older conversion there is replaced.
        transformer: folder of the transformer that training started from. Its config.json is needed where
            options.model.arch_opt is null, its weights where options.train.parameter_groups leaves some untrained.
        ema: take the average of the weights, which training keeps with train.ema_decay.
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
    config = architecture(options, transformer)
    model = empty_transformer(config)
    saved = check_checkpoint(model_path, AVERAGE_FOLDER if ema else MODEL_FOLDER)
    found = read_checkpoint(averaged_state(model_path) if ema else model_path)
    state, counts = _checked_state(options, found, model, model_path, transformer)
    state = _cast(state, dtype, model_path)
    with atomic_folder(save_path) as partial:
        if options.train.lora_ft:
            _write_lora(partial, state, options, model)
        else:
            _write_transformer(partial, state, model, max_shard_size)
        verify(partial, state, config)
        origin = {"source": portable(model_path), "checkpoint_sha256": saved, "ema": ema}
        report = origin | _describe(options, state, counts, partial)
        write_json(partial / CONVERSION_FILE, report)
        _require_replaceable(save_path)  # once more: converting takes minutes
    return report


def architecture(options: ExperimentOptions, transformer: Path | None) -> dict[str, Any]:
    """The transformer's init arguments, from `model.arch_opt` and the start's config.json; ValueError where they differ."""
    path = Path(transformer) / "config.json" if transformer else None
    content = read_architecture(Path(transformer)) if transformer else {}
    base = {key: value for key, value in content.items() if not key.startswith("_")}
    if options.model.arch_opt is None:
        if not base:
            raise ValueError(
                "model.arch_opt: null says that the architecture is that of the transformer that training started from: "
                f"give its folder, with config.json ({path or 'none was given'} is not there)."
            )
        return base
    given = options.model.arch_opt.model_dump(mode="json")
    differing = differing_keys(options.model.arch_opt, base)
    if differing:
        problems = "; ".join(f"{key}: {given[key]!r}, the base has {base[key]!r}" for key in differing)
        raise ValueError(f"model.arch_opt differs from {path}: {problems}.")
    return given


def _checked_state(
    options: ExperimentOptions,
    state: State,
    model: OmniGen2Transformer2DModel,
    where: Path,
    transformer: Path | None,
) -> tuple[State, dict[str, int]]:
    """The tensors to export, and how many base tensors were found beside an adapter, and how many come from the start."""
    train = options.train
    adapters, rest = split_lora(state)
    if not train.lora_ft:
        if adapters:
            raise ValueError(f"{where}: holds {len(adapters)} LoRA keys, but train.lora_ft is false in the options.")
        return _with_untrained(options, rest, model, where, transformer)
    if not adapters:
        raise ValueError(f"{where}: holds no LoRA keys (<module>.lora_A.weight), but train.lora_ft is true.")
    _require_rank(adapters, train.lora_rank, where)
    advice = "Check model.arch_opt and train.lora_*, and that checkpoint and options belong together."
    require_shapes(adapters, lora_shapes(model, train), str(where), advice)
    if rest:
        expected = base_shapes_beside_lora(model, train)
        require_shapes(rest, expected, f"{where} (base weights beside the LoRA)", advice)
    return adapters, {"base": len(rest), "start": 0}


def _with_untrained(
    options: ExperimentOptions,
    state: State,
    model: OmniGen2Transformer2DModel,
    where: Path,
    transformer: Path | None,
) -> tuple[State, dict[str, int]]:
    """The trained parameters, and all others as training has loaded them from the transformer that it started from."""
    shapes = full_shapes(model)
    trained = trained_names(shapes, options.train.parameter_groups)
    advice = "Check model.arch_opt and train.parameter_groups, and that checkpoint and options belong together."
    require_shapes(state, {name: shapes[name] for name in trained}, str(where), advice)
    untrained = {name: shape for name, shape in shapes.items() if name not in trained}
    if untrained:
        if transformer is None:
            raise ValueError(
                f"train.parameter_groups: leaves {len(untrained)} parameters untrained: give the folder of the transformer "
                "that training started from."
            )
        check_weights([transformer])
        start = read_transformer(transformer).state_dict()
        require_shapes(start, shapes, str(transformer), "It is not the transformer that training started from.")
        state = state | {name: start[name] for name in untrained}
    return state, {"base": 0, "start": len(untrained)}


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


def _write_transformer(folder: Path, state: State, model: OmniGen2Transformer2DModel, max_shard_size: str) -> None:
    model.load_state_dict(state, strict=True, assign=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def _write_lora(folder: Path, state: State, options: ExperimentOptions, model: OmniGen2Transformer2DModel) -> None:
    config = lora_config_of(options.train, model).to_dict()
    kept = ("r", "lora_alpha", "target_modules", "use_dora", "use_rslora")
    save_lora(folder, state, {key: config[key] for key in kept})


def _describe(options: ExperimentOptions, state: State, counts: dict[str, int], folder: Path) -> dict[str, Any]:
    train = options.train
    lora = {
        "rank": train.lora_rank,
        "alpha": train.lora_alpha or train.lora_rank,
        "use_dora": train.lora_use_dora,
        "use_rslora": train.lora_use_rslora,
        "targets": sum(name.endswith(FACTORS[0]) for name in state),
    }
    return {
        "kind": "lora" if train.lora_ft else "full",
        "keys": len(state),
        **counts,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        "lora": lora if train.lora_ft else None,
        "files": {
            path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }


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

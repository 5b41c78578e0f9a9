"""Turn a training checkpoint into weights that others load, in one of several formats."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omnitune.config import ExperimentOptions
from omnitune.config.experiment.training import trained_names
from omnitune.conversion.adapters import Adapter
from omnitune.conversion.card import model_card
from omnitune.conversion.checkpoint import check_checkpoint, hashing_thread
from omnitune.conversion.extract import require_rank
from omnitune.conversion.keys import (
    base_shapes_beside_lora,
    empty_transformer,
    full_shapes,
    lora_shapes,
    require_shapes,
    split_lora,
)
from omnitune.conversion.read import averaged_state, read_checkpoint
from omnitune.conversion.start import starting_state
from omnitune.conversion.tensors import State
from omnitune.conversion.write import Target, Weights, is_merged, require_replaceable, write_weights
from omnitune.io.files import portable
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.base_fingerprint import folder_fingerprint
from omnitune.models.lora.lora import FACTORS, linear_names
from omnitune.paths import AVERAGE_FOLDER, METADATA_FILE, MODEL_FOLDER
from omnitune.pretrained.transformer import trained_layers
from omnitune.training.adapter import lora_config_of
from omnitune.training.architecture import differing_keys, read_architecture


def convert(
    options: ExperimentOptions,
    model_path: Path,
    save_path: Path,
    transformer: Path | None = None,
    *,
    ema: bool = False,
    target: Target | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Writes a checkpoint's weights, reads them as the target program does, compares, and only then shows the folder.

    Tensors are read, computed and written one at a time, while a thread hashes the checkpoint.

    Args:
        options: the experiment: architecture, which parameters it trains, the adapter.
        model_path: what `read_checkpoint` reads.
        save_path: the folder to write; an older conversion there is replaced.
        transformer: folder of the transformer that training started from. Its config.json is needed where
            options.model.arch_opt is null, its weights where options.train.parameter_groups leaves some untrained or an
            adapter is merged.
        ema: take the average of the weights, which training keeps with train.ema_decay.
        target: format, precision and file size.
        scale: strength of an adapter that is merged.

    Returns:
        The content of `conversion.json`, which stands in the folder.

    Raises:
        ValueError: for a checkpoint that cannot be read or whose keys, shapes or rank do not fit.
    """
    target = target or Target()
    require_replaceable(save_path, _sources(model_path, transformer, target.base))
    _require_adapter(options, target.format, scale)
    sha256, checks = check_checkpoint(model_path, AVERAGE_FOLDER if ema else MODEL_FOLDER)
    with hashing_thread(wait=False) as thread:
        checking = [thread.submit(check) for check in checks]
        config = architecture(options, transformer)
        model = empty_transformer(config)
        with _damage_first(checking):
            found = read_checkpoint(averaged_state(model_path) if ema else model_path)
        state, counts = _checked_state(options, found, model, model_path, transformer)
        _require_one_dtype(state, target.dtype, model_path)
        weights = _weights(options, state, config, model, transformer, target, scale)

        def facts() -> dict[str, Any]:
            for checked in checking:
                checked.result()
            origin = {"source": portable(model_path), "checkpoint_sha256": sha256, "ema": ema}
            return origin | _describe(options, state, counts) | {"base_fingerprint": weights.base}

        with _damage_first(checking):
            return write_weights(save_path, weights, target, facts, partial(model_card, options, model_path))


def _sources(model_path: Path, *others: Path | None) -> list[Path]:
    """What is read; of a checkpoint the states and files in it, as conversions lie beside them."""
    own = [model_path]
    if model_path.is_dir() and not (model_path / METADATA_FILE).is_file():
        own = [path for path in model_path.iterdir() if path.is_file() or (path / METADATA_FILE).is_file()]
    return [*own, *filter(None, others)]


@contextmanager
def _damage_first(checking: Sequence[Future[None]]) -> Iterator[None]:
    """Around what reads a checkpoint's files: that one is damaged says more than what came of it."""
    try:
        yield
    except ValueError:
        for checked in checking:
            checked.result()
        raise


def _require_adapter(options: ExperimentOptions, format: str, scale: float) -> None:
    """Raises ValueError for what only an adapter can be, or only all weights, and a scale that is no number."""
    if not math.isfinite(scale):
        raise ValueError(f"scale: {scale} is no number.")
    if not options.train.lora_ft and (format == "merged" or scale != 1):
        raise ValueError("format merged and a scale are for adapters, but train.lora_ft is false in the options.")
    if options.train.lora_ft and format == "extracted":
        raise ValueError("format extracted is for all weights, but train.lora_ft is true in the options.")


def architecture(options: ExperimentOptions, transformer: Path | None) -> dict[str, Any]:
    """The transformer's init arguments, from model.arch_opt and the start's config; ValueError where they differ."""
    path = Path(transformer) / "config.json" if transformer else None
    content = read_architecture(Path(transformer)) if transformer else {}
    base = {key: value for key, value in content.items() if not key.startswith("_")}
    if options.model.arch_opt is None:
        if not base:
            raise ValueError(
                "model.arch_opt: null says that the architecture is that of the transformer that training started "
                f"from: give its folder, with config.json ({path or 'none was given'} is not there)."
            )
        return base
    given = options.model.arch_opt.model_dump(mode="json")
    differing = differing_keys(options.model.arch_opt, base)
    if differing:
        problems = "; ".join(f"{key}: {given[key]!r}, the base has {base[key]!r}" for key in differing)
        raise ValueError(f"model.arch_opt differs from {path}: {problems}.")
    return given


def _weights(
    options: ExperimentOptions,
    state: State,
    config: dict[str, Any],
    model: OmniGen2Transformer2DModel,
    transformer: Path | None,
    target: Target,
    scale: float,
) -> Weights:
    """The transformer's weights; of an adapter, it, and the weights under it where the format wants them merged."""
    train, format = options.train, target.format
    if not train.lora_ft and format == "extracted":
        modules = trained_layers(full_shapes(model), linear_names(model), train.parameter_groups)
        require_rank(full_shapes(model), modules, target.rank)
        start = starting_state(transformer, model)
        return Weights(config, state, (), modules, folder_fingerprint(transformer) if transformer else None, start)
    if not train.lora_ft:
        return Weights(config, state)
    modules = [name.removesuffix(FACTORS[0]) for name in state if name.endswith(FACTORS[0])]
    adapter = Adapter(state, dict.fromkeys(modules, train.lora_alpha or train.lora_rank), train.lora_use_rslora)
    into_weights = is_merged(format, adapter)
    if scale != 1 and not into_weights:
        raise ValueError(f"scale: {scale:g} is for formats that an adapter is merged in; {format} keeps it apart.")
    under = starting_state(transformer, model) if into_weights else None
    targets = sorted(lora_config_of(train, model).target_modules or ())
    return Weights(config, under, [(adapter, scale)], targets, folder_fingerprint(transformer) if transformer else None)


def _checked_state(
    options: ExperimentOptions,
    state: State,
    model: OmniGen2Transformer2DModel,
    where: Path,
    transformer: Path | None,
) -> tuple[State, dict[str, int]]:
    """The tensors to export, how many of the base lay beside an adapter, and how many come from the start."""
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
                f"train.parameter_groups: leaves {len(untrained)} parameters untrained: give the folder of the "
                "transformer that training started from."
            )
        start = starting_state(transformer, model)
        dtype = next(iter(state.values())).dtype  # training has loaded them in its own
        state = state | {name: start[name].to(dtype) for name in untrained}
    return state, {"base": 0, "start": len(untrained)}


def _require_rank(adapters: State, rank: int, where: Path) -> None:
    ranks = sorted({tensor.shape[0] for name, tensor in adapters.items() if ".lora_A." in name})
    if ranks != [rank]:
        found = ", ".join(map(str, ranks)) or "none"
        raise ValueError(
            f"{where}: the checkpoint's LoRA rank is {found}, train.lora_rank is {rank}: they must be equal."
        )


def _require_one_dtype(state: State, dtype: str | None, where: Path) -> None:
    found = {tensor.dtype for tensor in state.values()}
    if dtype is None and len(found) > 1:
        names = ", ".join(sorted(str(one).removeprefix("torch.") for one in found))
        raise ValueError(f"{where}: its tensors have several dtypes ({names}): say which to save with `dtype`.")


def _describe(options: ExperimentOptions, state: State, counts: dict[str, int]) -> dict[str, Any]:
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
        "parameters": sum(tensor.numel for tensor in state.values()),
        "lora": lora if train.lora_ft else None,
    }

"""What a training is a function of, and what it means that this has changed since. Imports nothing heavy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnitune.checkpoints.states import list_checkpoints, newest_state, next_superseded
from omnitune.config import ExperimentOptions
from omnitune.config.affects import defaults
from omnitune.config.mixtures.sources import sources_of
from omnitune.errors import ConfigError
from omnitune.io.files import sha256_of
from omnitune.paths import parse_converted, starting_adapter_file, weights_name
from omnitune.pretrained.weights import weights_hash
from omnitune.sharding.digests import read_sources

Identity = dict[str, Any]
DEFAULTS = defaults(ExperimentOptions)
WEIGHTS = "the weights that it starts from have changed"
BASE_MODEL = "the files of its base model have changed"
ADAPTER = "the adapter that it starts from has changed"


def identity_of(options: ExperimentOptions, base: Path, transformer: Path, index: Path) -> Identity:
    """What the weights are a function of, and checkpoints therefore bound to: options, starting weights, data.

    Args:
        options: the experiment's.
        base: folder of the base pipeline.
        transformer: folder of the weights that training starts from.
        index: index.parquet of the shards.

    Returns:
        options: the keys that affect the weights. base, starting_weights, starting_adapter: hashes, the last one where
            there
        is an adapter. data: by source its ratio, number of samples and a hash over them.
    """
    manifest = base / "manifest.json"
    identity = {
        "options": options.identity,
        "base": sha256_of(manifest) if manifest.is_file() else None,
        "starting_weights": weights_hash(transformer),
        "data": data_identity(options, index),
    }
    if options.train.lora_path:
        identity["starting_adapter"] = sha256_of(starting_adapter_file(options.train.lora_path))
    return identity


def data_identity(options: ExperimentOptions, index: Path) -> dict[str, Any]:
    """Ratio, number of samples and hash of each source of the mixture; ConfigError where the index lacks one."""
    found = read_sources(index)
    sources = sources_of(options.data)
    missing = [source.name for source in sources if source.name not in found]
    if missing:
        raise ConfigError(
            f"{index}: has no samples of {', '.join(map(repr, missing))} (it has {', '.join(found)}). Mixture and "
            "shards do not belong together. Prepare the data again: snakemake --cores 2 shard."
        )
    return {source.name: {"ratio": source.ratio, **found[source.name]} for source in sources}


def changes(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, a line each, as a person would say it. What one alone knows is no change.

    Args:
        trained: of the checkpoints.
        asked: of the config.
    """
    known = trained.keys() & asked.keys()
    lines: list[str] = []
    if "options" in known:
        # A key that was not there yet when the checkpoint was saved has had its default.
        before = {**DEFAULTS, **trained["options"]}
        after = asked["options"]
        names = sorted(name for name in after if before.get(name) != after[name])
        lines += [f"{name}: {_shown(before.get(name))} -> {_shown(after[name])}" for name in names]
    if "data" in known:
        lines += _data_changes(trained["data"], asked["data"])
    texts = {"base": BASE_MODEL, "starting_weights": WEIGHTS, "starting_adapter": ADAPTER}
    return lines + [text for name, text in texts.items() if name in known and trained[name] != asked[name]]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _data_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: no longer in the mixture" for name in before.keys() - after]
    lines += [f"{name}: new in the mixture" for name in after.keys() - before]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        if old["ratio"] != new["ratio"]:
            lines.append(f"{name}: ratio {old['ratio']:g} -> {new['ratio']:g}")
        if old["samples"] != new["samples"]:
            lines.append(f"{name}: {old['samples']} -> {new['samples']} samples")
        elif old["sha256"] != new["sha256"]:
            lines.append(f"{name}: other content in its {new['samples']} samples")
    return sorted(lines)


def require_same(options: ExperimentOptions, asked: Mapping[str, Any], folder: Path, file: str) -> bool:
    """Whether a training's newest checkpoint is of this identity; without any, it is.

    Args:
        options: the experiment's; resume_from_checkpoint: null allows another identity.
        asked: of the config, as far as it is known.
        folder: experiments/{experiment}.
        file: the options file, for the message.

    Raises:
        ConfigError: where it is not, and must be.
    """
    state = newest_state(folder)
    differing = changes(state.identity, asked) if state else []
    if differing and options.resume_from_checkpoint is not None:
        raise ConfigError(refusal(options, differing, folder, file))
    return not differing


def stretched(options: ExperimentOptions, folder: Path) -> str | None:
    """What it means that a training goes on with another number of steps, where its schedule ends with the last one.

    Args:
        options: the experiment's.
        folder: experiments/{experiment}, with the options that its checkpoints were trained with.

    Returns:
        A sentence; None where nothing is gone on from, or the learning rates of its steps stay as they were.
    """
    now, kept = options.train, folder / "options.yml"
    done = max((step for step in list_checkpoints(folder) if step <= now.max_train_steps), default=0)
    if not now.schedule_stretches or not done or not kept.is_file():
        return None
    try:
        before = ExperimentOptions.load(kept).train
    except ConfigError:  # of another version, or damaged; it is written anew
        return None
    if before.max_train_steps == now.max_train_steps or before.lr_scheduler != now.lr_scheduler:
        return None
    way_out = "set train.t_initial" if now.lr_scheduler == "timm_cosine" else "take one that does not, as `constant`"
    return (
        f"{folder}: train.max_train_steps: {before.max_train_steps} -> {now.max_train_steps}: its schedule "
        f"{now.lr_scheduler} ends with the last step, so that it is another now. Steps up to {done} were trained as "
        f"part of {before.max_train_steps}; the next ones go on at the learning rates of {now.max_train_steps}, from "
        f"where these are after {done} steps. To keep to one schedule, start over with all steps, or {way_out}."
    )


def refusal(options: ExperimentOptions, differing: list[str], folder: Path, file: str) -> str:
    """The message on a training that would not go on from its checkpoints: what has changed, and what may be done."""
    last = max(list_checkpoints(folder), default=0)
    start = f"{folder}/checkpoint-{last}/{weights_name(options.train.lora_ft)}"
    lines = [f"    train: {{lora_path: {start}}}"]
    if not options.train.lora_ft:
        lines = [f"    model: {{pretrained_model_path: {start}}}"]
    if parse_converted(start) is None:  # a folder of its own (omnitune train --output)
        lines = []
    return "\n".join(
        [
            f"{folder}: was trained otherwise than {file} now asks for. Nothing was run, and all that it made is still "
            "there.",
            *(f"  - {line}" for line in differing),
            "Undo this and there is nothing to do. Or:",
            f"  - to start over, set resume_from_checkpoint: null in {file}; the old checkpoints are then kept in "
            f"{next_superseded(folder)}",
            "  - to go on from the finished weights, put these lines into an options file of another name, and that "
            "file into `experiments` in place of this one",
            f"    name: {options.name}_2",
            *lines,
        ]
    )

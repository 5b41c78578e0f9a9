"""Which weights an experiment starts from, and where the workflow keeps them."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnitune.config.experiment.model import ModelOptions
from omnitune.config.experiment.options import ExperimentOptions
from omnitune.errors import ConfigError
from omnitune.paths import BASE, EvaluatedStep, names_folder, weights_name

PRETRAINED_ROOT = Path("resources/pretrained")
EXPERIMENTS_ROOT = Path("experiments")


@dataclass(frozen=True)
class StartingWeights:
    """Where an experiment's training starts.

    Attributes:
        model: the {model} wildcard, a name for the base pipeline.
        base: folder of the base pipeline (VAE, text encoder, tokenizer, scheduler and its transformer).
        transformer: folder of the transformer to train: the base's own, another experiment's converted one, or that of
            model.transformer_path.
        source: the model options that say how the base folder is made.
        upstream: (experiment, step or its average) whose conversion must run first, if any.
    """

    model: str
    base: Path
    transformer: Path
    source: ModelOptions
    upstream: tuple[str, EvaluatedStep] | None


def model_name(model: ModelOptions) -> str:
    """A file name for a base pipeline, distinct for each combination of its sources."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "--", model.pretrained_model_path.strip("/"))
    if not names_folder(name):  # `..` must not name the folder above
        name = f"base-{hashlib.sha256(model.pretrained_model_path.encode()).hexdigest()[:8]}"
    extra: list[str | None] = [
        model.pretrained_revision,
        model.pretrained_vae_model_name_or_path,
        model.pretrained_text_encoder_model_name_or_path,
    ]
    if model.pretrained_vae_revision or model.pretrained_text_encoder_revision:
        extra += [model.pretrained_vae_revision, model.pretrained_text_encoder_revision]
    if model.pretrained_vae_model_name_or_path and model.vae_subfolder != "vae":
        extra.append(model.vae_subfolder or "")
    if any(extra):
        name += "-" + hashlib.sha256(json.dumps(extra).encode()).hexdigest()[:8]
    return name


def starting_weights(options: ExperimentOptions, experiments: Mapping[str, ExperimentOptions]) -> StartingWeights:
    """Follows `pretrained_model_path` through other experiments to the pipeline at its root.

    Args:
        options: the experiment.
        experiments: the configured experiments by name; others are looked up in experiments/{name}/options.yml.

    Raises:
        ConfigError: for an unknown experiment, a step without checkpoint, a LoRA experiment or a circle.
    """
    seen = [options.name]
    source = options
    while source.model.upstream:
        name, step = source.model.upstream
        if name in seen:
            raise ConfigError(f"experiments start from each other in a circle: {' -> '.join([*seen, name])}.")
        key = f"model.pretrained_model_path: {source.model.pretrained_model_path!r}"
        following = _experiment(name, experiments, source, key)
        if following.train.lora_ft:
            raise ConfigError(
                f"experiment {source.name!r}: {key}: {name!r} trains a LoRA adapter and leaves no `transformer` folder."
            )
        _check_upstream(following, step, source, key)
        seen.append(name)
        source = following
    if options.adapter_upstream:
        _check_adapter(options, experiments)
    model = model_name(source.model)
    base = PRETRAINED_ROOT / model
    transformer = Path(options.model.transformer_path) if options.model.transformer_path else base / "transformer"
    upstream = options.model.upstream
    if upstream:
        name, step = upstream
        transformer = EXPERIMENTS_ROOT / name / f"checkpoint-{step.number}" / weights_name(lora=False, ema=step.ema)
    return StartingWeights(model, base, transformer, source.model, upstream)


def evaluation_folders(experiment: Path, options: ExperimentOptions, shared: bool = False) -> dict[EvaluatedStep, Path]:
    """Folder of the evaluation of each step and average; BASE is what the experiment started from.

    Args:
        experiment: experiments/{experiment}.
        options: the experiment's.
        shared: the start is a checkpoint that is evaluated for its own experiment, so that no second evaluation is
            made.
    """
    folders = {step: experiment / "evaluation" / str(step) for step in (BASE, *options.evaluated)}
    if shared and options.model.upstream:
        name, step = options.model.upstream
        folders[BASE] = experiment.parent / name / "evaluation" / str(step)
    return folders


def _check_adapter(options: ExperimentOptions, experiments: Mapping[str, ExperimentOptions]) -> None:
    """Raises ConfigError for an adapter to start from that its experiment will not leave, or not in this form."""
    assert options.adapter_upstream
    name, step = options.adapter_upstream
    key = f"train.lora_path: {options.train.lora_path!r}"
    if name == options.name:
        raise ConfigError(
            f"experiment {name!r}: {key} is its own adapter; resume_from_checkpoint goes on from checkpoints."
        )
    upstream = _experiment(name, experiments, options, key)
    if not upstream.train.lora_ft:
        raise ConfigError(f"experiment {options.name!r}: {key}: {name!r} trains no LoRA adapter (train.lora_ft).")
    _check_upstream(upstream, step, options, key)


def _experiment(
    name: str, experiments: Mapping[str, ExperimentOptions], by: ExperimentOptions, key: str
) -> ExperimentOptions:
    if name in experiments:
        return experiments[name]
    resolved = EXPERIMENTS_ROOT / name / "options.yml"
    if resolved.is_file():
        return ExperimentOptions.load(resolved)
    raise ConfigError(
        f"experiment {by.name!r}: {key} names the experiment {name!r}, which is neither in `experiments` "
        f"(known: {', '.join(sorted(experiments))}) nor in {resolved}. Weights from elsewhere: name their base "
        "pipeline as model.pretrained_model_path and their folder as model.transformer_path."
    )


def _check_upstream(upstream: ExperimentOptions, start: EvaluatedStep, by: ExperimentOptions, key: str) -> None:
    step = start.number
    where = f"experiment {by.name!r}: {key}"
    if start.ema and not upstream.train.ema_decay:
        raise ConfigError(f"{where}: {upstream.name!r} keeps no average of its weights. Set train.ema_decay there.")
    if step not in upstream.checkpoint_steps:
        steps = ", ".join(map(str, upstream.checkpoint_steps))
        raise ConfigError(f"{where}: {upstream.name!r} saves no checkpoint at step {step}; it saves at {steps}.")
    if upstream.logger.checkpoints_total_limit and step not in upstream.evaluated_steps:
        raise ConfigError(
            f"{where}: {upstream.name!r} may remove its checkpoint at step {step} (logger.checkpoints_total_limit: "
            f"{upstream.logger.checkpoints_total_limit}). Set val.evaluate_checkpoints: all there, or remove the limit."
        )

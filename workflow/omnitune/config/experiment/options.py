"""Options of an experiment, in the published OmniGen2 format with Omnitune's own keys beside it."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects, keys_affecting
from omnitune.config.base import PathText, PositiveInt, Section, Seed
from omnitune.config.data import DataOptions
from omnitune.config.experiment.convert import ConvertOptions
from omnitune.config.experiment.model import ModelOptions, converted_by
from omnitune.config.experiment.training import TrainOptions, TransportOptions
from omnitune.config.experiment.variants import check_layers, read_layers
from omnitune.config.mixtures.sources import count_rows, sources_of
from omnitune.errors import ConfigError
from omnitune.paths import BASE, MAX_NAME_BYTES, EvaluatedStep, formats_of, weights_name


class ValOptions(Section):
    """What is evaluated, while training and after it."""

    evaluate_checkpoints: Annotated[
        Literal["last", "all"],
        Field(description="Convert and evaluate the last checkpoint or each one."),
        Affects("evaluations"),
    ] = "last"
    lora_scales: Annotated[
        list[Annotated[float, Field(ge=0.01, le=100, multiple_of=0.01)]],
        Field(
            description="Evaluate an adapter at these scales as well, such as [0.5, 1.5]; as it was trained it always "
            "is. Hundredths."
        ),
        Affects("evaluations"),
    ] = []
    data_path: Annotated[
        PathText | None,
        Field(
            description="Held-out samples (.jsonl, in the format of training samples). null: no validation while "
            "training."
        ),
        NOTHING,
    ] = None
    max_samples: Annotated[
        PositiveInt,
        Field(description="The first so many held-out samples are taken for the loss while training."),
        NOTHING,
    ] = 32
    validation_steps: Annotated[
        int,
        Field(
            ge=0, description="Held-out loss, at fixed times with fixed noise, every so many training steps. 0: never."
        ),
        NOTHING,
    ] = 500
    validation_timesteps: Annotated[
        PositiveInt, Field(description="Times of the held-out loss, evenly spread over [0, 1]."), NOTHING
    ] = 4
    train_visualization_steps: Annotated[
        int,
        Field(ge=0, description="Sample images of held-out prompts every so many training steps. 0: never."),
        NOTHING,
    ] = 100
    visualization_samples: Annotated[
        PositiveInt,
        Field(
            validation_alias=AliasChoices("visualization_samples", "num_train_visualization_samples"),
            description="The first so many held-out prompts that images are drawn of while training; also read under "
            "its published name `num_train_visualization_samples`.",
        ),
        NOTHING,
    ] = 4
    num_inference_steps: Annotated[PositiveInt, Field(description="Sampling steps of these images."), NOTHING] = 20
    text_guidance_scale: Annotated[
        float,
        Field(ge=1, description="Guidance of these images towards the instruction; 1 is no guidance at all."),
        NOTHING,
    ] = 4.0
    image_guidance_scale: Annotated[
        float, Field(ge=1, description="Guidance of these images towards the inputs; 1 is none."), NOTHING
    ] = 2.0


class LoggerOptions(Section):
    """Logs and checkpoints."""

    log_with: Annotated[
        list[Literal["tensorboard", "wandb"]] | Literal["tensorboard", "wandb", "all"] | None,
        Field(
            description="Trackers beside logs/metrics.jsonl. wandb needs `pip install wandb`; `all`: those that are "
            "installed."
        ),
        NOTHING,
    ] = ["tensorboard"]
    project_name: Annotated[str, Field(description="wandb: name of the project."), NOTHING] = "omnitune"
    checkpointing_steps: Annotated[
        PositiveInt, Field(description="A checkpoint every so many steps, and at the end."), Affects("checkpoints")
    ] = 1000
    checkpoints_total_limit: Annotated[
        PositiveInt | None,
        Field(description="Keep at most this many checkpoints besides those to evaluate. null: all."),
        NOTHING,
    ] = None

    @property
    def trackers(self) -> list[str]:
        """Names of the trackers."""
        if self.log_with is None:
            return []
        if self.log_with == "all":
            return ["tensorboard", *(["wandb"] if find_spec("wandb") else [])]
        return [self.log_with] if isinstance(self.log_with, str) else list(self.log_with)


NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of experiments
DEFAULT_SEED = 2233


class ExperimentOptions(Section):
    """Options of one experiment."""

    extends: Annotated[
        str | None,
        Field(
            description="Options file, relative to this one, whose keys hold where this file has none: section by "
            "section, lists as a whole. It may itself extend another, and need not be complete. `name` is not taken "
            "from it."
        ),
        NAMES,
    ] = None
    name: Annotated[
        str,
        Field(
            pattern=NAME,
            max_length=MAX_NAME_BYTES,
            description="Name of the experiment: experiments/{name}. Letters, digits, `_`, `.`, `-`.",
        ),
        NAMES,
    ]
    seed: Annotated[
        Seed,
        Field(description="Seed of data order, noise, times and dropout, below 2^63. null is the default, too."),
        Affects("weights"),
    ] = DEFAULT_SEED
    device_specific_seed: Annotated[
        bool, Field(description="Read for compatibility: randomness belongs to samples here, not to devices."), NOTHING
    ] = True
    worker_specific_seed: Annotated[
        bool,
        Field(
            validation_alias=AliasChoices("worker_specific_seed", "workder_specific_seed"),
            description="Read for compatibility, also under its published spelling `workder_specific_seed`.",
        ),
        NOTHING,
    ] = True
    same_seed_per_epoch: Annotated[
        bool, Field(description="Read for compatibility: randomness belongs to steps here, not to epochs."), NOTHING
    ] = False
    data: DataOptions = Field(description="Data: what is trained on and how large it may be.")
    model: ModelOptions = Field(description="Weights to start from.")
    transport: TransportOptions = Field(TransportOptions(), description="The flow: how training times are drawn.")
    train: TrainOptions = Field(TrainOptions(), description="The optimisation.")
    val: ValOptions = Field(ValOptions(), description="What is evaluated, while training and after it.")
    convert: ConvertOptions = Field(ConvertOptions(), description="In which forms the weights are written.")
    logger: LoggerOptions = Field(LoggerOptions(), description="Logs and checkpoints.")
    cache_dir: Annotated[
        PathText | None, Field(description="Folder where downloaded weights are cached. null: the library's."), NOTHING
    ] = None
    resume_from_checkpoint: Annotated[
        Annotated[str, Field(pattern=r"^(latest|(.*/)?checkpoint-\d+)$")] | None,
        Field(
            description="`latest`, as which `checkpoint-N` is read, too: "
            "an interrupted training goes on from its newest checkpoint, and refuses to under changed "
            "options. null: under changed options it starts over; the old attempt is kept in superseded-{n}/."
        ),
        NOTHING,
    ] = "latest"

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads an options file and those that it extends; raises ConfigError."""
        return check_layers(read_layers(Path(path)), cls).with_steps(str(path))

    def with_steps(self, where: str) -> Self:
        """With the number of steps that the epochs come to, where train.num_train_epochs alone says it.

        An epoch is as many samples as the sources of the mixture have rows, which are counted for it.

        Raises:
            ConfigError: with `where` the options stand, for sources whose rows cannot be counted now.
        """
        train = self.train
        if train.num_train_epochs is None or "max_train_steps" in train.model_fields_set:
            return self
        key = f"{where}: train.num_train_epochs"
        rows = sum(count_rows(source.files, source.name, key) for source in sources_of(self.data))
        steps = max(1, math.ceil(train.num_train_epochs * rows / train.global_batch_size))
        return self.model_copy(update={"train": train.model_copy(update={"max_train_steps": steps})})

    @field_validator("seed", mode="before")
    @classmethod
    def _there_is_always_one(cls, seed: object) -> object:
        return DEFAULT_SEED if seed is None else seed

    @model_validator(mode="after")
    def _scales_are_of_adapters(self) -> Self:
        if self.val.lora_scales and not self.train.lora_ft:
            raise ValueError("val.lora_scales: scales are of adapters, but train.lora_ft is false. Take the key out")
        return self

    @model_validator(mode="after")
    def _formats_are_of_what_is_trained(self) -> Self:
        if "merged" in self.convert.formats and not self.train.lora_ft:
            raise ValueError(
                "convert.formats: merged is for adapters, but train.lora_ft is false; all weights are in `diffusers`"
            )
        if "extracted" in self.convert.formats and self.train.lora_ft:
            raise ValueError(
                "convert.formats: extracted is for training of all weights, but train.lora_ft is true; the adapter is "
                "in `diffusers`"
            )
        return self

    @property
    def checkpoint_steps(self) -> list[int]:
        """Steps at which training saves: every checkpointing_steps, and the last."""
        last = self.train.max_train_steps
        return sorted({*range(self.logger.checkpointing_steps, last, self.logger.checkpointing_steps), last})

    @property
    def evaluated_steps(self) -> list[int]:
        """Steps that are converted and evaluated."""
        return self.checkpoint_steps if self.val.evaluate_checkpoints == "all" else self.checkpoint_steps[-1:]

    @property
    def adapter_upstream(self) -> tuple[str, EvaluatedStep] | None:
        """(experiment, step or its average) when training goes on from another experiment's converted adapter."""
        return converted_by(self.train.lora_path, lora=True)

    @property
    def evaluated(self) -> list[EvaluatedStep]:
        """What is converted and evaluated: each of these steps, with train.ema_decay its average as well, and adapters
        at val.lora_scales."""
        forms = (False, True) if self.train.ema_decay else (False,)
        found = [EvaluatedStep(step, ema) for step in self.evaluated_steps for ema in forms]
        scaled = [EvaluatedStep(step, lora_scale=s) for step in self.evaluated_steps for s in self.val.lora_scales]
        return sorted({*found, *scaled})

    def require_step(self, step: EvaluatedStep, weights: str | None = None) -> None:
        """Raises ConfigError for a checkpoint, or a folder of converted weights, that this will not leave."""
        names = [weights_name(self.train.lora_ft, step.ema, format) for format in formats_of(self.train.lora_ft)]
        known = self.checkpoint_steps
        if step.ema and not self.train.ema_decay:
            raise ConfigError(f"experiment {self.name!r} keeps no average of its weights (train.ema_decay).")
        if step.lora_scale != 1 and step not in self.evaluated:
            raise ConfigError(
                f"experiment {self.name!r} is not evaluated at LoRA scale {step.lora_scale:g} (val.lora_scales)."
            )
        if step.number not in known and step != BASE:
            listed = ", ".join(map(str, known if len(known) < 10 else [*known[:4], "..", *known[-4:]]))
            raise ConfigError(f"experiment {self.name!r} saves no checkpoint at step {step}; known: {listed}.")
        if weights not in (None, *names):
            raise ConfigError(f"experiment {self.name!r} is converted to {', '.join(names)}, not to {weights}.")

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that decide what the trained weights are, by their full names: those a checkpoint is bound to.

        Not among them are keys that may change between two starts of one training: its length (checkpoints know their
        step), logging, evaluation, paths of caches, how the global batch is cut into processes, and mere checks.
        """
        return keys_affecting(self, "weights")


def require_processes(options: ExperimentOptions, num_processes: int, where: str) -> None:
    """Raises ConfigError unless the batch sizes fit the number of processes."""
    train = options.train
    if train.num_processes != num_processes:
        per_process = train.batch_size * train.gradient_accumulation_steps
        raise ConfigError(
            f"{where}: 1 problem\n"
            f"  - train.global_batch_size: {train.global_batch_size} is not allowed: batch_size {train.batch_size} x "
            f"{num_processes} processes x gradient_accumulation_steps {train.gradient_accumulation_steps} = "
            f"{per_process * num_processes}. Start {train.num_processes} processes or change one of the three."
        )


def without_meaning(options: ExperimentOptions) -> Iterator[str]:
    """A line on each key of the published trainer that is set and that nothing here follows from."""
    train = options.train
    if options.same_seed_per_epoch:
        yield (
            "same_seed_per_epoch: has no effect: what is drawn follows from seed, step and sample, never from the "
            "epoch."
        )
    if options.model.resize_token_embeddings:
        yield "model.resize_token_embeddings: has no effect: rows that no token has change no text features."
    if train.t_in_epochs:
        yield "train.t_in_epochs: has no effect, as in the published trainer: warmup_t and t_initial count steps."
    if train.cycle_decay != 1:
        yield "train.cycle_decay: has no effect: there is one cycle."
    if options.resume_from_checkpoint not in (None, "latest"):
        yield (
            f"resume_from_checkpoint: {options.resume_from_checkpoint!r} is read as 'latest': what comes after a "
            "checkpoint follows from it. To go back to it, remove the newer ones."
        )

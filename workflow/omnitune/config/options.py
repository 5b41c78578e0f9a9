"""Options of an experiment, in the published OmniGen2 format with Omnitune's own keys beside it."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects, keys_affecting
from omnitune.config.base import PathText, PositiveInt, Probability, Section, Seed
from omnitune.config.choices import IMAGE_FORMATS, OneOf
from omnitune.config.convert import ConvertOptions
from omnitune.config.sources import count_rows, sources_of
from omnitune.config.training import TrainOptions, TransportOptions
from omnitune.config.urls import UrlOptions
from omnitune.config.variants import check_layers, read_layers
from omnitune.errors import ConfigError
from omnitune.paths import MAX_NAME_BYTES, EvaluatedStep, file_stem, names_folder, parse_converted


def _number_of_limits(data: "DataOptions", value: int | list[int]) -> int | None:
    return len(value) if isinstance(value, list) else None


# Of manifests, which leave out what would have no pixels and may be cut by bytes. Of weights, too, where tars come out
# the same: the shift of the timesteps is by max_output_pixels, and held-out images are brought to the same limits as
# the training's.
IMAGE_LIMIT = Affects("manifests", "shards", "weights")
INPUT_LIMIT = Affects("manifests", "shards", "weights", samples=_number_of_limits)


class DataOptions(Section):
    """Data: what is trained on and how large it may be."""

    data_path: Annotated[
        PathText,
        Field(description="Mixture file (.yml). Its stem names the prepared data set, prepared/{stem}."),
        NAMES,
    ]
    instruction_keys: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        Field(
            min_length=1,
            description="Keys of a row that its instruction is taken from: the first that has a text, as in "
            "`[instruction_long, instruction]`.",
        ),
        Affects("samples"),
    ] = ["instruction"]
    use_chat_template: Annotated[
        bool,
        Field(description="Wrap instructions in the text encoder's chat template, as the published model expects."),
        Affects("samples", "encodings", "weights"),
    ] = True
    maximum_text_tokens: Annotated[
        PositiveInt,
        Field(description="Instructions of more tokens, the chat around them included, are rejected."),
        Affects("samples", "encodings", "weights"),
    ] = 888
    prompt_dropout_prob: Annotated[
        Probability,
        Field(description="Probability of training a sample with the empty instruction."),
        Affects("weights"),
    ] = 0.0001
    ref_img_dropout_prob: Annotated[
        Probability,
        Field(description="Probability of dropping the references where the instruction was dropped."),
        Affects("weights"),
    ] = 0.5
    max_output_pixels: Annotated[
        int,
        Field(ge=256, description="Output images are shrunk to at most this many pixels (width x height)."),
        IMAGE_LIMIT,
    ] = 1048576
    max_input_pixels: Annotated[
        int | list[int],
        Field(
            description="The same for input images. A list: its k-th entry holds for samples with k inputs, "
            "the last one also for more."
        ),
        INPUT_LIMIT,
    ] = [1048576, 1048576, 589824, 262144]
    max_side_length: Annotated[
        int, Field(ge=16, description="No side of any image is longer than this, in pixels."), IMAGE_LIMIT
    ] = 2048
    max_reject_fraction: Annotated[
        Probability,
        Field(description="Validation fails when more than this share of the rows is rejected."),
        Affects("manifests"),
    ] = 0.01
    samples_per_shard: Annotated[
        PositiveInt,
        Field(description="Rows of a source that go into one tar."),
        Affects(manifests=lambda data, rows: None if data.shard_bytes else rows),
    ] = 1000
    shard_bytes: Annotated[
        PositiveInt | None,
        Field(description="Cut tars at about this many bytes instead of at samples_per_shard rows. null: by rows."),
        Affects("manifests"),
    ] = None
    validation_depth: Annotated[
        Literal["full", "header"],
        Field(
            description="`full` decodes and hashes every image; `header` reads sizes and formats from the first bytes "
            "only."
        ),
        Affects("samples"),
    ] = "full"
    max_image_pixels: Annotated[
        PositiveInt, Field(description="Images of more pixels are rejected as decompression bombs."), Affects("samples")
    ] = 178_956_970
    image_root: Annotated[
        PathText | None,
        Field(description="Reject images that do not lie below this folder or URL. null: they may lie anywhere."),
        Affects("samples"),
    ] = None
    source_root: Annotated[
        PathText | list[PathText] | None,
        Field(
            description="One or several folders or URLs, below which alone all that the mixture names may lie, links "
            "followed. null: below the working directory and the mixture's own folder, and at any URL."
        ),
        NOTHING,
    ] = None
    urls: UrlOptions = UrlOptions()
    image_format: Annotated[
        str,
        OneOf(IMAGE_FORMATS),
        Field(
            description="Format of images that had to be changed; others keep their bytes. jpeg is without subsampling."
        ),
        IMAGE_LIMIT,
    ] = "jpeg"
    image_quality: Annotated[int, Field(ge=1, le=100, description="Quality of jpeg and webp."), IMAGE_LIMIT] = 95
    encode: Annotated[
        bool,
        Field(
            description="Train from stored VAE posteriors and text features, encoded once by a stage of its own. "
            "false: training encodes each sample whenever it is drawn."
        ),
        Affects("weights"),
    ] = False
    encoded_precision: Annotated[
        Literal["bf16", "fp32"],
        Field(
            description="Precision of the text encoder in encoding, and of what is stored. The VAE computes in float32."
        ),
        Affects("encodings", weights=lambda data, precision: precision if data.encode else None),
    ] = "bf16"
    shards_per_encoding: Annotated[
        PositiveInt,
        Field(description="Tars that one encoding job takes, so that the models are loaded once for all."),
        Affects("groups"),
    ] = 16
    url_cache_mb: Annotated[
        int,
        Field(
            ge=0,
            description="Disk space of each node in MB, below cache_dir, that keeps what training has read from URLs.",
        ),
        NOTHING,
    ] = 10_000

    @field_validator("data_path")
    @classmethod
    def _stem_names_a_folder(cls, path: str) -> str:
        if not names_folder(file_stem(path)):  # `...yml` has the stem `..`
            raise ValueError(
                f"its stem {Path(path).stem!r} names folders; take letters, digits, `_`, `-` and `.` alone, one of the "
                f"first three at its beginning, and at most {MAX_NAME_BYTES} bytes"
            )
        return path

    @field_validator("max_input_pixels")
    @classmethod
    def _limits_are_positive(cls, value: int | list[int]) -> int | list[int]:
        limits = value if isinstance(value, list) else [value]
        if not limits or min(limits) < 256:
            raise ValueError("needs one limit or a list of limits, each at least 256 pixels")
        return value

    @property
    def source_roots(self) -> list[str] | None:
        """Below which sources may lie; None for the usual places."""
        return [self.source_root] if isinstance(self.source_root, str) else self.source_root

    @property
    def dataset(self) -> str:
        """Name of the prepared data set."""
        return file_stem(self.data_path)

    @property
    def image_limits(self) -> dict[str, Any]:
        """What becomes of images in shards: the arguments of `omnitune.images.prepare.ImageLimits`."""
        return keys_affecting(self, "shards")


class ArchOptions(Section):
    """Architecture of the transformer; checked against the pretrained weights."""

    patch_size: PositiveInt = Field(2, description="Side of a patch in latent positions.")
    in_channels: PositiveInt = Field(16, description="Latent channels.")
    out_channels: PositiveInt | None = Field(None, description="Channels of the prediction. null: in_channels.")
    hidden_size: PositiveInt = Field(2520, description="Width of the transformer.")
    num_layers: PositiveInt = Field(32, description="Joint layers.")
    num_refiner_layers: PositiveInt = Field(2, description="Blocks in each of the three refiners.")
    num_attention_heads: PositiveInt = Field(21, description="Query heads.")
    num_kv_heads: PositiveInt = Field(7, description="Key and value heads.")
    multiple_of: PositiveInt = Field(256, description="The feed-forward width is rounded up to a multiple of this.")
    ffn_dim_multiplier: float | None = Field(None, description="Scales the feed-forward width. null: 1.")
    norm_eps: float = Field(1e-5, gt=0, description="Epsilon of the RMS norms.")
    axes_dim_rope: tuple[int, int, int] = Field(
        (40, 40, 40), description="Rotary dimensions per axis; their sum is the head size."
    )
    axes_lens: tuple[int, int, int] = Field((10000, 10000, 10000), description="Longest position per axis.")
    text_feat_dim: PositiveInt = Field(2048, description="Width of the text features.")
    timestep_scale: float = Field(1000.0, gt=0, description="Factor on the time before its sinusoidal projection.")

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.num_attention_heads or (
            self.hidden_size // self.num_attention_heads != sum(self.axes_dim_rope)
        ):
            raise ValueError(
                f"hidden_size: {self.hidden_size} / num_attention_heads {self.num_attention_heads} "
                f"must equal the sum of axes_dim_rope {list(self.axes_dim_rope)}"
            )
        return self


def _converted_by(path: str | None, lora: bool) -> tuple[str, EvaluatedStep] | None:
    found = parse_converted(path)
    return found[:2] if found and found[2] == lora else None


class ModelOptions(Section):
    """Weights to start from."""

    pretrained_model_path: Annotated[
        PathText,
        Field(
            description="What training starts from: a repository id (`OmniGen2/OmniGen2`), a local pipeline folder, "
            "`demo` (the tiny built-in model), or another experiment's converted checkpoint "
            "(`experiments/{experiment}/checkpoint-{step}/transformer`, or `transformer_ema`), which is then trained "
            "first."
        ),
        Affects("base", "weights"),
    ]
    transformer_path: Annotated[
        PathText | None,
        Field(
            description="Train from the transformer in this folder (config.json, diffusion_pytorch_model*.safetensors) "
            "in place of the pipeline's own, as the published script takes `--transformer_path`. null: the pipeline's."
        ),
        NAMES,
    ] = None
    pretrained_revision: Annotated[
        str | None,
        Field(description="Commit, branch or tag of the repository. null: the newest; pin a commit to reproduce."),
        Affects("base", "weights"),
    ] = None
    pretrained_vae_model_name_or_path: Annotated[
        PathText | None,
        Field(description="Take the VAE from this repository or folder. null: the pipeline's own."),
        Affects("base", "weights"),
    ] = None
    vae_subfolder: Annotated[
        str | None,
        Field(description="Folder of the VAE in pretrained_vae_model_name_or_path. null: that is the VAE itself."),
        Affects("base", "weights"),
    ] = "vae"
    pretrained_text_encoder_model_name_or_path: Annotated[
        PathText | None,
        Field(description="Take text encoder and tokenizer from here. null: the pipeline's own."),
        Affects("base", "weights"),
    ] = None
    resize_token_embeddings: Annotated[
        bool,
        Field(description="Read for compatibility: rows of the embedding that no token has change no features."),
        NOTHING,
    ] = False
    pretrained_vae_revision: Annotated[
        str | None,
        Field(description="The same as pretrained_revision for the repository of the VAE."),
        Affects("base", "weights"),
    ] = None
    pretrained_text_encoder_revision: Annotated[
        str | None,
        Field(description="The same as pretrained_revision for the repository of the text encoder."),
        Affects("base", "weights"),
    ] = None
    arch_opt: Annotated[
        ArchOptions | None,
        Field(description="Architecture that the weights must have; a difference is an error. null: not checked."),
        NOTHING,
    ] = None

    @model_validator(mode="after")
    def _base_is_not_an_adapter(self) -> Self:
        converted = parse_converted(self.pretrained_model_path)
        if converted and converted[2]:
            raise ValueError(
                f"pretrained_model_path: {self.pretrained_model_path!r} is a LoRA adapter, which holds no base "
                "weights; name a pipeline or a `transformer` folder"
            )
        ignored = (
            "transformer_path",
            "pretrained_revision",
            "pretrained_vae_model_name_or_path",
            "pretrained_text_encoder_model_name_or_path",
            "pretrained_vae_revision",
            "pretrained_text_encoder_revision",
        )
        for key in filter(lambda key: converted and getattr(self, key), ignored):
            raise ValueError(f"{key}: has no effect, as pretrained_model_path names another experiment; set it there")
        for part in ("vae", "text_encoder"):
            revision, source = f"pretrained_{part}_revision", f"pretrained_{part}_model_name_or_path"
            if getattr(self, revision) and not getattr(self, source):
                raise ValueError(
                    f"{revision}: has no effect, as {source} names no repository; set that, or remove this"
                )
        return self

    @field_validator("vae_subfolder")
    @classmethod
    def _lies_inside(cls, folder: str | None) -> str | None:
        if folder and not all(map(names_folder, folder.split("/"))):
            raise ValueError("needs names of folders, as in `vae`")
        return folder or None

    @model_validator(mode="after")
    def _other_weights_are_no_experiment_of_this_project(self) -> Self:
        if parse_converted(self.transformer_path):
            raise ValueError(
                f"transformer_path: {self.transformer_path!r} is another experiment's converted checkpoint: name it as "
                "pretrained_model_path, so that it is trained first"
            )
        return self

    @property
    def upstream(self) -> tuple[str, EvaluatedStep] | None:
        """(experiment, step or its average) when training starts from another experiment's converted checkpoint."""
        return _converted_by(self.pretrained_model_path, lora=False)


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
        return _converted_by(self.train.lora_path, lora=True)

    @property
    def evaluated(self) -> list[EvaluatedStep]:
        """What is converted and evaluated: each of these steps, with train.ema_decay its average as well, and adapters
        at val.lora_scales."""
        forms = (False, True) if self.train.ema_decay else (False,)
        found = [EvaluatedStep(step, ema) for step in self.evaluated_steps for ema in forms]
        scaled = [EvaluatedStep(step, lora_scale=s) for step in self.evaluated_steps for s in self.val.lora_scales]
        return sorted({*found, *scaled})

    @property
    def identity(self) -> dict[str, Any]:
        """The keys that decide what the trained weights are, by their full names: those a checkpoint is bound to.

        Not among them are keys that may change between two starts of one training: its length (checkpoints know their
            step),
        logging, evaluation, paths of caches, how the global batch is cut into processes, and mere checks.
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

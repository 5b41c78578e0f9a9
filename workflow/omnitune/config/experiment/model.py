"""`model`: the weights that a training starts from."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects
from omnitune.config.base import PathText, PositiveInt, Section
from omnitune.paths import EvaluatedStep, names_folder, parse_converted


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


def converted_by(path: str | None, lora: bool) -> tuple[str, EvaluatedStep] | None:
    """(experiment, step or its average) of a path to a converted checkpoint, or with `lora` to a converted adapter."""
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
        return converted_by(self.pretrained_model_path, lora=False)

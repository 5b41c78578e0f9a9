"""What the parts of a base model say of themselves in JSON: the keys that code acts on. Imports nothing heavy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omnitune.io.json_object import checked, not_allowed, read_json

CONFIG_LIMIT = 4 << 20  # bytes; published ones have some thousand
Width = Annotated[int, Field(ge=1, le=1_000_000)]  # beyond any model; larger ones would be made before they fail
MOST_LAYERS = 256  # twice those of the largest models; each takes some milliseconds before it is refused
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Three = Annotated[list[Width], Field(min_length=3, max_length=3)]


class Part(BaseModel):
    """Keys of a part's JSON with the defaults of its class; those that are not here are left to the library."""

    model_config = ConfigDict(strict=True, extra="ignore")

    class_name: str | None = Field(None, alias="_class_name")


class _Transformer(Part):
    patch_size: Width = 2
    in_channels: Width = 16
    out_channels: Width | None = None
    hidden_size: Width = 2520
    num_layers: Layers = 32
    num_refiner_layers: Layers = 2
    num_attention_heads: Width = 21
    num_kv_heads: Width = 7
    multiple_of: Width = 256
    ffn_dim_multiplier: Annotated[float, Field(gt=0, le=64)] | None = None
    norm_eps: Positive = 1e-5
    axes_dim_rope: Three = [40, 40, 40]
    axes_lens: Three = [10000, 10000, 10000]
    text_feat_dim: Width = 2048
    timestep_scale: Positive = 1000.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.hidden_size != self.num_attention_heads * sum(self.axes_dim_rope):
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not num_attention_heads {self.num_attention_heads} times the sum "
                f"of axes_dim_rope {self.axes_dim_rope}"
            )
        if self.num_attention_heads % self.num_kv_heads or any(side % 2 for side in self.axes_dim_rope):
            raise ValueError(
                f"num_kv_heads: {self.num_kv_heads} must divide num_attention_heads {self.num_attention_heads}, and "
                f"axes_dim_rope {self.axes_dim_rope} be even"
            )
        return self


class _Vae(Part):
    in_channels: Width = 3
    out_channels: Width = 3
    latent_channels: Width = 4
    block_out_channels: Annotated[list[Width], Field(min_length=1, max_length=32)] = [64]
    down_block_types: Annotated[list[str], Field(min_length=1, max_length=32)] = ["DownEncoderBlock2D"]
    up_block_types: Annotated[list[str], Field(min_length=1, max_length=32)] = ["UpDecoderBlock2D"]
    layers_per_block: Layers = 1
    norm_num_groups: Width = 32
    act_fn: str = "silu"
    sample_size: Width | Annotated[list[Width], Field(min_length=1)] = 32
    scaling_factor: Positive = 0.18215
    shift_factor: Annotated[float, Field(allow_inf_nan=False)] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="after")
    def _layers_are_few(self) -> Self:
        blocks = max(len(self.down_block_types), len(self.up_block_types))
        if blocks * self.layers_per_block > MOST_LAYERS:
            raise ValueError(
                f"layers_per_block: {self.layers_per_block} is not allowed in {blocks} blocks: these are more than "
                f"{MOST_LAYERS} layers"
            )
        return self


class _Rope(Part):
    """Of the language model. Frequencies of other types have sizes of their own."""

    mrope_section: Three = [16, 24, 24]
    rope_type: Literal["default", "mrope", "linear", "yarn"] | None = None
    type: Literal["default", "mrope", "linear", "yarn"] | None = None
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] | None = None


class _Text(Part):
    vocab_size: Width | None = None
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Width | None = None
    num_key_value_heads: Width | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    rms_norm_eps: Positive | None = None
    head_dim: Width | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] | None = None
    hidden_act: str | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None


class _Vision(Part):
    depth: Layers | None = None
    num_hidden_layers: Layers | None = None  # the library takes it for depth, and the next for num_heads
    num_attention_heads: Width | None = None
    in_channels: Width | None = None
    head_dim: Width | None = None
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    out_hidden_size: Width | None = None
    num_heads: Width | None = None
    patch_size: Width | None = None
    spatial_merge_size: Width | None = None
    temporal_patch_size: Width | None = None
    window_size: Width | None = None
    hidden_act: str | None = None


class _TextEncoder(_Text):
    """The language model's keys stand beside the others, or in a section of their own."""

    model_type: str | None = None
    architectures: Annotated[list[str], Field(min_length=1, max_length=1)] | None = None
    text_config: _Text | None = None
    vision_config: _Vision | None = None

    @model_validator(mode="after")
    def _rotation_fits(self) -> Self:
        text = self.text_config or self
        head = (text.hidden_size or 8192) // (text.num_attention_heads or 64)  # the defaults of its class
        if text.head_dim not in (None, head):
            raise ValueError(f"head_dim: {text.head_dim} is not hidden_size by num_attention_heads, {head}")
        ropes = [rope for rope in (text.rope_scaling, text.rope_parameters) if rope] or [_Rope.model_validate({})]
        for rope in ropes:
            if 2 * sum(rope.mrope_section) != head:
                raise ValueError(
                    f"mrope_section: {rope.mrope_section} must add up to half of {head}, which is hidden_size by "
                    "num_attention_heads"
                )
        return self


class _Scheduler(Part):
    num_train_timesteps: Width = 1000
    dynamic_time_shift: bool = True


PARTS: Mapping[str, tuple[str, type[Part]]] = {
    "transformer": ("config.json", _Transformer),
    "vae": ("config.json", _Vae),
    "mllm": ("config.json", _TextEncoder),
    "scheduler": ("scheduler_config.json", _Scheduler),
}
# Keys by which a library loads something else than what lies in the folder, with what they may hold.
ELSEWHERE: Mapping[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("auto_map", "quantization_config", "fusion_config", "transformers_weights"), (None,)),
    **dict.fromkeys(("configuration_files", "fast_tokenizer_files", "gguf_file"), (None,)),
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), (None, "eager", "sdpa")),
    **dict.fromkeys(("experts_implementation", "_experts_implementation"), (None, "eager")),
    **dict.fromkeys(("dtype", "torch_dtype"), (None, "auto", "float32", "float16", "bfloat16")),
}
MOST_LABELS = 30_000  # the library makes a name for each; those of the largest set of classes are 21,843
ADAPTER_FILE = "adapter_config.json"


def read_part(folder: Path, part: str) -> dict[str, Any]:
    """The JSON in which a part of a pipeline says what it is, as it stands there.

    Args:
        folder: of the part.
        part: one of PARTS.

    Raises:
        ValueError: where it is missing or no JSON; for the first value that its class cannot take, with file and key;
            as of read_own and, for a text encoder, of require_no_adapter.
    """
    if part == "mllm":
        require_no_adapter(folder)
    name, model = PARTS[part]
    content = read_own(folder / name)
    checked(folder / name, content, model)
    return content


def read_own(path: Path) -> dict[str, Any]:
    """The JSON by which a library loads a folder.

    Raises:
        ValueError: where it is missing or no JSON, or would have the library load code, kernels, quantized weights or
            files that were not looked at, or make more names of classes than any model has.
    """
    content = read_json(path, CONFIG_LIMIT)
    sections = [content]
    while sections:
        section = sections.pop()
        sections += [value for value in section.values() if isinstance(value, dict)]
        for key in ELSEWHERE.keys() & section.keys():
            if section[key] not in ELSEWHERE[key]:
                raise not_allowed(path, key, section[key], "something else would be loaded than this folder's weights")
        labels = section.get("num_labels") or 0
        if not isinstance(labels, int) or labels > MOST_LABELS:
            raise not_allowed(path, "num_labels", labels, f"it is no number up to {MOST_LABELS}")
    return content


def require_no_adapter(folder: Path) -> None:
    """Raises ValueError for what transformers would take beside or in place of a model's weights, unasked.

    An adapter, and parts of a distributed checkpoint, which lie where their own headers say.
    """
    if os.path.lexists(folder / ADAPTER_FILE):
        raise ValueError(f"{folder / ADAPTER_FILE}: an adapter does not belong into a model's folder. Take it out.")
    for path in sorted(folder.glob("shard-*-model-*.safetensors")):
        raise ValueError(f"{path}: is a part of a distributed checkpoint, which is not read. Take it out.")

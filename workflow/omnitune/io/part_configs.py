"""What the parts of a base model say of themselves in JSON: the keys that code acts on. Imports nothing heavy."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from omnitune.io.weights import read_json

Width = Annotated[int, Field(ge=1, le=1_000_000)]  # beyond any model; larger ones would be made before they fail
Layers = Annotated[int, Field(ge=1, le=1000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# What pydantic puts into the place of a value that may be of several types.
UNION_TAG = re.compile(r"(constrained-)?(str|int|float)|(list|dict|nullable)\[.*\]")
Three = Annotated[list[Width], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    """Keys of a part's JSON with the defaults of its class; those that are not here are left to the library."""

    model_config = ConfigDict(strict=True, extra="ignore")

    class_name: str | None = Field(None, alias="_class_name")


class _Transformer(_Part):
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


class _Vae(_Part):
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


class _Text(_Part):
    vocab_size: Width | None = None
    hidden_size: Width | None = None
    intermediate_size: Width | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Width | None = None
    num_key_value_heads: Width | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    rms_norm_eps: Positive | None = None
    rope_theta: Positive | None = None
    hidden_act: str | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None


class _Vision(_Part):
    depth: Layers | None = None
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


class _Scheduler(_Part):
    num_train_timesteps: Width = 1000
    dynamic_time_shift: bool = True


class _Tokenizer(_Part):
    """Of these classes the first is loaded; the last two are any tokenizer that its files describe."""

    tokenizer_class: (
        Literal["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"] | None
    ) = None
    auto_map: None = None
    chat_template: str | list[dict[str, str]] | dict[str, str] | None = None
    model_max_length: Annotated[float, Field(gt=0)] | None = None
    padding_side: str | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    additional_special_tokens: list[str | dict[str, Any]] | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None


# How text is split before pairs are merged. An expression of somebody else's may take for ever.
SPLITTING = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Pattern(_Part):
    Regex: Literal[SPLITTING]  # type: ignore[valid-type]


class _Split(_Part):
    type: Literal["Split"]
    pattern: _Pattern
    behavior: Literal["Isolated"]
    invert: Literal[False] = False


class _Bytes(_Part):
    type: Literal["ByteLevel"]


class _BytesOfWords(_Bytes):
    add_prefix_space: Literal[False]
    use_regex: Literal[False]


class _Splitting(_Part):
    type: Literal["Sequence"]
    pretokenizers: Annotated[tuple[_Split, _BytesOfWords], Strict(False)]


class _NothingAround(_Part):
    """A text's tokens as they are; others put more before and behind them, in any number."""

    type: Literal["TemplateProcessing"]
    single: Annotated[list[dict[Literal["Sequence"], Any]], Field(max_length=1)]


class _Normal(_Part):
    type: Literal["NFC"]


class _Merging(_Part):
    type: Literal["BPE"] = "BPE"


class _TokenizerSteps(_Part):
    """What Qwen2Tokenizer does whatever stands here; of anything else that is asked for it would do nothing, unsaid."""

    normalizer: _Normal
    pre_tokenizer: _Splitting
    model: _Merging
    post_processor: Annotated[_Bytes | _NothingAround, Field(discriminator="type")] | None = None
    decoder: _Bytes | None = None


TOKENIZER_FILE, STEPS_FILE = "tokenizer_config.json", "tokenizer.json"
PARTS: Mapping[str, tuple[str, type[_Part]]] = {
    "transformer": ("config.json", _Transformer),
    "vae": ("config.json", _Vae),
    "mllm": ("config.json", _TextEncoder),
    "processor": (TOKENIZER_FILE, _Tokenizer),
    "tokenizer": (STEPS_FILE, _TokenizerSteps),
    "scheduler": ("scheduler_config.json", _Scheduler),
}


def read_part(folder: Path, part: str) -> dict[str, Any]:
    """The JSON in which a part of a pipeline says what it is, as it stands there.

    Args:
        folder: of the part.
        part: one of PARTS.

    Raises:
        ValueError: where it is missing or no JSON; for the first value that its class cannot take, with file and key.
    """
    name, model = PARTS[part]
    content = read_json(folder / name)
    try:
        model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"] if not UNION_TAG.fullmatch(str(step)))
        message = first["msg"].removeprefix("Value error, ")
        said = f"{key}: {json.dumps(first['input'])[:80]} is not allowed: {message}" if key else message
        raise ValueError(f"{folder / name}: {said}. Take the file from where the weights are from.") from None
    return content


def check_tokenizer(folder: Path) -> None:
    """Reads what the files of a tokenizer say of it, but for its words.

    Raises:
        ValueError: as read_part does, and where there are no words: the library would make a tokenizer without any.
    """
    if (folder / TOKENIZER_FILE).is_file():
        read_part(folder, "processor")
    if (folder / STEPS_FILE).is_file():
        read_part(folder, "tokenizer")
    elif not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ValueError(
            f"{folder}: holds no tokenizer: neither {STEPS_FILE} nor vocab.json and merges.txt. Name a pipeline folder "
            "with processor/."
        )

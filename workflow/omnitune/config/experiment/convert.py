"""The section `convert` of an experiment's options: what becomes of the checkpoints that are evaluated."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from omnitune.config.affects import Affects
from omnitune.config.base import PositiveInt, Section
from omnitune.paths import FORMATS, Format

EXTRACTED_RANK = 64
SHARD_SIZE = r"^[1-9]\d{0,8}(KB|MB|GB)$"


class ConvertOptions(Section):
    """In which forms the weights are written."""

    formats: Annotated[
        list[Format],
        Field(
            description="Each in a folder of its own beside the checkpoint: `diffusers`, `transformer` or "
            "`transformer_lora` in the published layout, which is made in any case, as evaluation loads it; `comfyui`, "
            "one file for ComfyUI; `merged`, an adapter merged into the base; `pipeline`, a whole pipeline folder; "
            "`extracted`, a LoRA that comes near to a training of all weights."
        ),
        Affects("evaluations"),
    ] = ["diffusers"]
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        Field(description="Precision of the written weights. null: float32, as trained; of a merge, that of the base."),
        Affects("conversions"),
    ] = None
    max_shard_size: Annotated[
        str,
        Field(
            pattern=SHARD_SIZE,
            description="Weights of more bytes are written in several files; those for ComfyUI are one in any case.",
        ),
        Affects("conversions"),
    ] = "10GB"

    extracted_rank: Annotated[
        PositiveInt,
        Field(le=4096, description="Rank of the LoRA of the format `extracted`."),
        Affects("conversions"),
    ] = EXTRACTED_RANK

    @field_validator("formats")
    @classmethod
    def _each_once_and_the_first_in_any_case(cls, formats: list[Format]) -> list[Format]:
        return [name for name in FORMATS if name in {FORMATS[0], *formats}]

"""Benchmark files: an evaluation protocol that is pinned, so that scores can be compared."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from omnitune.config.affects import NAMES, NOTHING, Affects
from omnitune.config.base import Section, Seed
from omnitune.config.choices import CHECKS, MEASURES, OneOf


class Benchmark(Section):
    """An evaluation protocol: prompts, sampling settings and measures."""

    prompts: Annotated[
        str,
        Field(
            description="A .jsonl file, one prompt a line: `key` (unique), `task_type`, `instruction`, optional `input_images`, "
            "`output_image` (the target) and `expect` (the known scene, for `check: demo_scene`). Image paths as in samples."
        ),
        NAMES,
    ]
    image_root: Annotated[
        str | None,
        Field(
            description="Folder below which alone the prompts' images may lie, links followed. "
            "null: below the working directory and the prompts' own folder."
        ),
        NOTHING,
    ] = None
    seed: Annotated[
        Seed,
        Field(description="Seed of the starting noise, below 2^63; each prompt derives its own from it."),
        Affects("images"),
    ] = 0
    num_inference_steps: Annotated[int, Field(ge=1, description="Sampling steps."), Affects("images")] = 50
    scheduler: Annotated[Literal["euler", "dpmsolver++"], Field(description="Sampler."), Affects("images")] = "euler"
    text_guidance_scale: Annotated[
        float, Field(ge=1, description="Guidance towards the instruction; 1 is none."), Affects("images")
    ] = 5.0
    image_guidance_scale: Annotated[
        float, Field(ge=1, description="Guidance towards the references; 1 is none."), Affects("images")
    ] = 2.0
    cfg_range: Annotated[
        tuple[float, float],
        Field(description="First and last fraction of the steps in which guidance is used."),
        Affects("images"),
    ] = (0.0, 1.0)
    negative_prompt: Annotated[
        str | None,
        Field(description="What guidance leads away from. null: the published long negative prompt."),
        Affects("images"),
    ] = None
    height: Annotated[
        int,
        Field(ge=16, multiple_of=16, description="Height of images in pixels, where no input sets it."),
        Affects("images"),
    ] = 1024
    width: Annotated[
        int,
        Field(ge=16, multiple_of=16, description="Width of images in pixels, where no input sets it."),
        Affects("images"),
    ] = 1024
    max_pixels: Annotated[
        int,
        Field(ge=256, description="Limit of input and output images in pixels (width x height)."),
        Affects("images"),
    ] = 1048576
    max_side_length: Annotated[
        int, Field(ge=16, description="Limit of an input image's longer side in pixels."), Affects("images")
    ] = 2048
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], Field(description="Precision of the weights when sampling."), Affects("images")
    ] = "bf16"
    batch_size: Annotated[
        int, Field(ge=1, description="Prompts sampled together; changes no image beyond rounding."), NOTHING
    ] = 1
    parts: Annotated[int, Field(ge=1, description="Into how many jobs the prompts are split."), Affects("parts")] = 1
    loss_timesteps: Annotated[
        int,
        Field(
            ge=0,
            description="Held-out flow-matching loss: at how many fixed times it is taken for each prompt with a target. 0: not.",
        ),
        Affects("images"),
    ] = 8
    check: Annotated[
        Annotated[str, OneOf(CHECKS)] | None,
        Field(
            description="A check of what pictures show. `demo_scene`: shape, colour, place and background in the demo."
        ),
        Affects("scores"),
    ] = None

    primary: Annotated[
        Annotated[str, OneOf(MEASURES)] | None,
        Field(
            description="The measure that the report's verdict is about. null: `check_passed` with a check, or else the first "
            "that the prompts have of `loss`, `psnr` and `ssim`."
        ),
        Affects("reports"),
    ] = None

    @model_validator(mode="after")
    def _primary_is_measured(self) -> Self:
        if self.primary and MEASURES[self.primary].function is None and self.check is None:
            raise ValueError(f"primary: {self.primary!r} is a figure of a check; set check, or take another measure")
        if self.primary == "loss" and not self.loss_timesteps:
            raise ValueError(
                "primary: 'loss' is not measured with loss_timesteps: 0; raise that, or take another measure"
            )
        return self

    @model_validator(mode="after")
    def _range_is_ordered(self) -> Self:
        start, end = self.cfg_range
        if not 0 <= start <= end <= 1:
            raise ValueError(f"cfg_range: {list(self.cfg_range)} is not allowed: needs 0 <= first <= last <= 1")
        return self

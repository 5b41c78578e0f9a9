"""How well a transformer draws the demo's world: pictures by the pipeline, looked at by the demo's check.

`python -m omnitune.demo.base_score --transformer experiments/demo/checkpoint-250/transformer` prints the share of right
pictures of each task, on the prompts on which the demo's hyper-parameters are chosen: no report scores these.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.demo.base_data import PIXELS, SIDE
from omnitune.demo.check import check_scene
from omnitune.demo.dataset import BASE_TASKS, Draft, drafts_of
from omnitune.demo.expectation import expectation
from omnitune.demo.scenes import render
from omnitune.models import OmniGen2Pipeline, read_transformer

INFERENCE_STEPS = 12  # as the base's record has it, as is the guidance
TEXT_GUIDANCE = 1.5
CHECKS = ("shape", "color", "position", "background", "passed")


@dataclass
class Drawn:
    """A prompt's references and picture, and what the check says of it."""

    draft: Draft
    inputs: list[Image.Image]
    picture: Image.Image
    result: dict[str, Any]


def scored_drafts(part: str, count: int, seed: int = 0) -> dict[str, list[Draft]]:
    """`count` drafts of a part for each task of the base, and of what it does not know: new shape and backgrounds."""
    return {
        task: list(islice(drafts_of(task, part, random.Random(f"score {task} {part} {seed}")), count))
        for task in (*BASE_TASKS, "star", "background")
    }


def draw(
    pipeline: OmniGen2Pipeline, drafts: Sequence[Draft], guidance: float = TEXT_GUIDANCE, steps: int = INFERENCE_STEPS
) -> list[Drawn]:
    """Each draft's picture, from a seed of its own, in one call of the pipeline."""
    inputs = [[render(scene, *draft.size) for scene in draft.inputs] for draft in drafts]
    result: Any = pipeline(
        prompt=[draft.instruction for draft in drafts],
        negative_prompt="",
        input_images=inputs,
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        text_guidance_scale=guidance,
        max_pixels=PIXELS,
        max_input_image_side_length=2048,
        generator=[torch.Generator().manual_seed(number) for number in range(len(drafts))],
    )
    return [
        Drawn(draft, own, image, check_scene(image, expectation(draft.output, *draft.size)))
        for draft, own, image in zip(drafts, inputs, result.images, strict=True)
    ]


def shares(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Share of pictures that are right, in all and by each part of the check."""
    return {name: sum(float(d.result[name]) for d in drawn) / len(drawn) for name in CHECKS}


def contact_sheet(rows: Sequence[Sequence[Drawn]], columns: int = 12, side: int = 96) -> Image.Image:
    """One line of pictures for each task, references above; a line below is green where the picture is right."""
    height = 2 * side + 12
    sheet = Image.new("RGB", (columns * (side + 4), len(rows) * height), "white")
    for line, row in enumerate(rows):
        for column, drawn in enumerate(row[:columns]):
            x, y = column * (side + 4), line * height
            for number, image in enumerate(drawn.inputs):
                half = (side // 2 - 1, side // 2 - 1)
                sheet.paste(image.resize(half), (x + number * side // 2, y + side // 2))
            sheet.paste(drawn.picture.resize((side, side), Image.Resampling.LANCZOS), (x, y + side))
            sheet.paste("green" if drawn.result["passed"] else "red", (x, y + 2 * side, x + side, y + 2 * side + 5))
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("resources/pretrained/demo"), help="pipeline folder")
    parser.add_argument("--transformer", type=Path, help="converted transformer; the base's where not given")
    parser.add_argument("--lora", type=Path, help="converted adapter on top")
    parser.add_argument("--part", default="choosing", choices=("choosing", "heldout"), help="which prompts")
    parser.add_argument("--prompts", type=int, default=96, help="of each task")
    parser.add_argument("--guidance", type=float, default=TEXT_GUIDANCE)
    parser.add_argument("--steps", type=int, default=8, help="of sampling; the demo's benchmarks take as many")
    given = parser.parse_args()
    own: dict[str, Any] = {}
    if given.transformer:
        own["transformer"] = read_transformer(given.transformer, torch.float32)
    pipeline = OmniGen2Pipeline.from_pretrained(given.base, **own)
    if given.lora:
        pipeline.load_lora_weights(given.lora)
    pipeline.set_progress_bar_config(disable=True)
    for task, drafts in scored_drafts(given.part, given.prompts).items():
        print(f"{task:<12} {shares(draw(pipeline, drafts, given.guidance, given.steps))['passed']:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""Commands to type: what draws with a row's weights as it was drawn, and what makes one of its images again."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.io.files import portable
from omnitune.paths import EvaluatedStep
from omnitune.report.collect import Evaluation


def commands(evaluations: Sequence[Evaluation], step: EvaluatedStep | None) -> list[str]:
    """What draws an image with a checkpoint."""
    if step is None or not evaluations:
        return []
    drawing = draw_command(evaluations[0].entry.benchmark, evaluations[0].scores[step]["weights"])
    return [f'{drawing} --instruction "..."']


def draw_command(benchmark: Benchmark, weights: Mapping[str, Any], size: tuple[int, int] | None = None) -> str:
    """`omnitune generate` with all options that decide an image, but for its prompt and seed.

    Args:
        benchmark: the protocol.
        weights: as `describe_weights` names them.
        size: (width, height) of the image in pixels, if not the benchmark's.
    """
    width, height = size or (benchmark.width, benchmark.height)
    options = [
        ("model_path", weights["base"]),
        ("transformer_path", weights["transformer"]),
        ("transformer_lora_path", weights["lora"]),
        ("transformer_lora_scale", weights.get("lora_scale")),
        ("height", height),
        ("width", width),
        ("num_inference_step", benchmark.num_inference_steps),
        ("text_guidance_scale", benchmark.text_guidance_scale),
        ("image_guidance_scale", benchmark.image_guidance_scale),
        ("cfg_range_start", benchmark.cfg_range[0]),
        ("cfg_range_end", benchmark.cfg_range[1]),
        ("negative_prompt", benchmark.negative_prompt),
        ("max_pixels", benchmark.max_pixels),
        ("max_input_image_pixels", benchmark.max_input_pixels or benchmark.max_pixels),
        ("max_input_image_side_length", benchmark.max_side_length),
        ("scheduler", benchmark.scheduler),
        ("dtype", benchmark.dtype),
    ]
    given = [part for name, value in options if value is not None for part in (f"--{name}", str(value))]
    return f"omnitune generate {shlex.join([*given, *([] if benchmark.align_res else ['--disable_align_res'])])}"


def remake_command(benchmark: Benchmark, weights: Mapping[str, Any], prompt: Prompt, seed: int) -> str:
    """What draws an image of a row again: the same bytes on the same machine, for what was drawn with batch_size 1."""
    own = [
        *(part for path in prompt.input_images for part in ("--input_image_path", portable(path))),
        *("--seed", str(seed), "--output_image_path", f"{prompt.key}.png", f"--instruction={prompt.instruction}"),
    ]
    return f"{draw_command(benchmark, weights, prompt.size)} {shlex.join(own)}"


def first_remade(evaluation: Evaluation) -> str:
    """That of the first prompt's image by the last row; "" where its seed is not known or it failed."""
    first = min(evaluation.entry.prompts, key=lambda prompt: prompt.key)
    return command_of(evaluation, evaluation.last, first) or ""


def command_of(evaluation: Evaluation, step: EvaluatedStep, prompt: Prompt) -> str | None:
    """That of a row's image; None where it failed."""
    drawn = evaluation.generations[step][prompt.key]
    if drawn["image"] is None or drawn.get("seed") is None:
        return None
    return remake_command(evaluation.entry.benchmark, evaluation.scores[step]["weights"], prompt, drawn["seed"])

"""What caches over the steps of a sampling win and cost: seconds, and the distance from the exact image."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from omnitune.demo.base_model import build_base_model
from omnitune.evaluation.generate import load_pipeline
from omnitune.models import OmniGen2Pipeline

STEPS = 50
SIDE = 64
PROMPTS = [
    f"The image shows a {colour} {shape} on the {side} of a grey background."
    for colour in ("red", "blue")
    for shape, side in (("circle", "left"), ("square", "right"))
]
WAYS: dict[str, Callable[[OmniGen2Pipeline], None]] = {
    "TeaCache, threshold 0.05": lambda pipeline: pipeline.enable_teacache(0.05),
    "TeaCache, threshold 0.2": lambda pipeline: pipeline.enable_teacache(0.2),
    "TaylorSeer": lambda pipeline: pipeline.enable_taylorseer(),
}


def draw(pipeline: OmniGen2Pipeline, steps: int = STEPS) -> tuple[float, np.ndarray]:
    """Seconds and pixels [N, H, W, 3] of all prompts, from the same noise each time."""
    generators = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
    options: dict[str, Any] = {"height": SIDE, "width": SIDE, "text_guidance_scale": 1.5, "output_type": "np"}
    started = time.perf_counter()
    images = pipeline(PROMPTS, "", num_inference_steps=steps, generator=generators, **options).images
    return time.perf_counter() - started, np.asarray(images)


def tables() -> list[Table]:
    """Each cache at its defaults and, to compare, half as many exact steps."""
    title = f"{len(PROMPTS)} images of {SIDE} x {SIDE} by the demo's base, {STEPS} steps; PSNR to the exact ones"
    result = Table("", "seconds", "lowest PSNR, dB", "mean PSNR, dB", title=title)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        build_base_model(Path(name))
        pipeline = load_pipeline(name, dtype="fp32", device="cpu")
        draw(pipeline, 2)
        seconds, exact = draw(pipeline)
        result.add_row("exact", f"{seconds:.1f}", "", "")
        measured = {f"{STEPS // 2} exact steps": draw(pipeline, STEPS // 2)}
        for way, enable in WAYS.items():
            enable(pipeline)
            measured[way] = draw(pipeline)
    for way, (seconds, images) in measured.items():
        ratios = [-10 * np.log10(np.mean((a - b) ** 2)) for a, b in zip(images, exact, strict=True)]
        result.add_row(way, f"{seconds:.1f}", f"{min(ratios):.1f}", f"{statistics.mean(ratios):.1f}")
    return [result]

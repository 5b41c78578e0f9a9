"""Images of a benchmark as its job draws them against the pipeline called prompt by prompt, on the demo's model.

Both draw the same images: those of the demo's held-out prompts of all three tasks. Files are written on both sides.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from rich.table import Table

from omnitune.config import Benchmark
from omnitune.demo.base_model import build_base_model
from omnitune.demo.dataset import write_dataset
from omnitune.evaluation.generate import generate, load_pipeline
from omnitune.evaluation.prompts import Prompt, image_seed, negative_prompt, open_image, read_prompts
from omnitune.models import OmniGen2Pipeline

THREADS = 2
ROUNDS = 2  # in turn; the faster counts, as other work on the machine only ever slows one down
EVERY = 4  # of the prompts, whose tasks take turns
BATCHES = (1, 10)
DEMO = Path(__file__).parents[1] / "config" / "benchmarks" / "demo_known.yml"


def one_by_one(benchmark: Benchmark, prompts: list[Prompt], pipeline: OmniGen2Pipeline, folder: Path) -> None:
    """A call of the pipeline for each prompt, as a script of one's own would do it."""
    folder.mkdir()
    for prompt in prompts:
        result: Any = pipeline(
            prompt=prompt.instruction,
            negative_prompt=negative_prompt(benchmark),
            input_images=[open_image(path) for path in prompt.input_images] or None,
            height=benchmark.height,
            width=benchmark.width,
            num_inference_steps=benchmark.num_inference_steps,
            text_guidance_scale=benchmark.text_guidance_scale,
            image_guidance_scale=benchmark.image_guidance_scale,
            max_pixels=benchmark.max_pixels,
            max_input_image_side_length=benchmark.max_side_length,
            generator=torch.Generator().manual_seed(image_seed(benchmark, prompt)),
        )
        result.images[0].save(folder / f"{prompt.key}.png")


def largest_difference(prompts: list[Prompt], one: Path, other: Path) -> int:
    """Of two folders' images, in steps of 255."""
    pairs = [
        [np.asarray(Image.open(folder / f"{prompt.key}.png"), int) for folder in (one, other)] for prompt in prompts
    ]
    return max(int(abs(first - second).max()) for first, second in pairs)


def tables() -> list[Table]:
    """Images per second of each way, and how far their images differ."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        build_base_model(folder / "base")
        write_dataset(folder / "demo")
        keys = yaml.safe_load(DEMO.read_text())
        keys |= {"prompts": str(folder / "demo/heldout/known.jsonl"), "loss_timesteps": 0, "image_guidance_scale": 1.2}
        benchmark = Benchmark(**keys, image_root=str(folder))
        prompts = read_prompts(benchmark, Path())[::EVERY]
        pipeline = load_pipeline(folder / "base", dtype="fp32", device="cpu")
        result = Table(
            "way", "images/s", "ratio", "largest difference of 255", title=f"{len(prompts)} images, {THREADS} threads"
        )
        ways: dict[str, Any] = {"prompt by prompt": lambda to: one_by_one(benchmark, prompts, pipeline, to)}
        for size in BATCHES:
            own = benchmark.model_copy(update={"batch_size": size})
            ways[f"batch_size {size}"] = lambda to, own=own: generate(own, prompts, pipeline, to, weights={})
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(ROUNDS):
            for number, (way, draw) in enumerate(ways.items()):
                started = time.perf_counter()
                draw(folder / f"{turn}-{number}")
                seconds[way].append(time.perf_counter() - started)
        first = min(seconds["prompt by prompt"])
        for number, (way, taken) in enumerate(seconds.items()):
            images = folder / f"0-{number}" / ("images" if number else "")
            difference = largest_difference(prompts, folder / "0-0", images)
            result.add_row(way, f"{len(prompts) / min(taken):.2f}", f"{first / min(taken):.2f}", str(difference))
    return [result]

"""What caches over the steps of a sampling win and cost: seconds, and the distance from the exact image.

As a table and as step_caches.png beside this file, which RESULTS.md shows. Seconds are those of one processor, with one
thread, so that other work on the machine changes them little.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from omnitune.demo.base_model import build_base_model
from omnitune.evaluation.generate import load_pipeline
from omnitune.models import OmniGen2Pipeline
from omnitune.models.transformer.step_cache import TAYLORSEER
from omnitune.report.plots import COLOURS, STYLE

STEPS = 50
ROUNDS = 5  # in turn; the faster counts
SIDE = 64
PROMPTS = [
    f"The image shows a {colour} {shape} on the {side} of a grey background."
    for colour in ("red", "blue")
    for shape, side in (("circle", "left"), ("square", "right"))
]
PLOT = Path(__file__).with_suffix(".png")


@dataclass(frozen=True)
class Way:
    """A way to sample faster, and what it came to.

    Attributes:
        kind: curve that it is a point of.
        setting: which point.
        enable: sets the pipeline up.
        steps: of the sampling.
        seconds: of all images; infinite before it was measured.
        psnr, ssim: of each image to the exact one; PSNR in dB.
    """

    kind: str
    setting: str
    enable: Callable[[OmniGen2Pipeline], None]
    steps: int = STEPS
    seconds: float = float("inf")
    psnr: Sequence[float] = ()
    ssim: Sequence[float] = ()


def ways() -> list[Way]:
    """Exact steps, all of them first, and each cache at several settings, its default among them."""
    found = [Way("exact", f"steps {n}", OmniGen2Pipeline.disable_step_cache, n) for n in (STEPS, 40, 30, 25, 20)]
    for threshold in (0.05, 0.1, 0.2):
        enable = lambda pipeline, threshold=threshold: pipeline.enable_teacache(threshold)  # noqa: E731
        found.append(Way("TeaCache", f"threshold {threshold}", enable))
    for interval in (2, 3, 4):
        config = replace(TAYLORSEER, cache_interval=interval)
        found.append(
            Way("TaylorSeer", f"interval {interval}", lambda pipeline, c=config: pipeline.enable_taylorseer(c))
        )
    return found


def draw(pipeline: OmniGen2Pipeline, steps: int = STEPS) -> tuple[float, torch.Tensor]:
    """Processor seconds and pixels [N, 3, H, W] in [0, 1] of all prompts, from the same noise each time."""
    generators = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
    options: dict[str, Any] = {"height": SIDE, "width": SIDE, "text_guidance_scale": 1.5, "output_type": "np"}
    started = time.process_time()
    images = pipeline(PROMPTS, "", num_inference_steps=steps, generator=generators, **options).images
    return time.process_time() - started, torch.as_tensor(images).permute(0, 3, 1, 2)


def measured(way: Way, pipeline: OmniGen2Pipeline, exact: torch.Tensor) -> Way:
    """The way with what it came to, or with fewer seconds than before."""
    way.enable(pipeline)
    seconds, images = draw(pipeline, way.steps)
    if way.psnr:
        return replace(way, seconds=min(seconds, way.seconds))
    pairs = [(image[None], wanted[None]) for image, wanted in zip(images, exact, strict=True)]
    psnr = [float(peak_signal_noise_ratio(*pair, data_range=1.0)) for pair in pairs]
    ssim: Any = [structural_similarity_index_measure(*pair, data_range=1.0) for pair in pairs]
    return replace(way, seconds=seconds, psnr=psnr, ssim=[float(value) for value in ssim])


def tables() -> list[Table]:
    """Each way's seconds, PSNR and SSIM; draws them, too."""
    torch.set_num_threads(1)
    title = f"{len(PROMPTS)} images of {SIDE} x {SIDE} by the demo's base; PSNR in dB and SSIM to {STEPS} exact steps"
    result = Table("", "seconds", "lowest PSNR", "mean PSNR", "lowest SSIM", "mean SSIM", title=title)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        build_base_model(Path(name))
        pipeline = load_pipeline(name, dtype="fp32", device="cpu")
        _, exact = draw(pipeline)
        found = ways()
        for _ in range(ROUNDS):
            found = [measured(way, pipeline, exact) for way in found]
    for way in found:
        psnr = [f"{min(way.psnr):.1f}", f"{fmean(way.psnr):.1f}"]
        ssim = [f"{min(way.ssim):.6f}", f"{fmean(way.ssim):.6f}"]
        same = way is found[0]
        result.add_row(f"{way.kind}: {way.setting}", f"{way.seconds:.2f}", *([] if same else [*psnr, *ssim]))
    plot(found[1:], found[0].seconds)
    return [result]


def plot(found: Sequence[Way], exact: float) -> None:
    """Writes PLOT: share of the exact sampling's seconds against mean PSNR and mean SSIM, a curve for each kind."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _curves(left, found, exact, "mean PSNR (dB)", lambda way: fmean(way.psnr))
        _curves(right, found, exact, "1 - mean SSIM", lambda way: 1 - fmean(way.ssim))
        right.set_yscale("log")
        right.invert_yaxis()  # better is above, as on the left
        left.legend(loc="center right")
        figure.savefig(PLOT, dpi=110, metadata={"Software": None})


def _curves(axes: Axes, found: Sequence[Way], exact: float, label: str, value: Callable[[Way], float]) -> None:
    for number, kind in enumerate(dict.fromkeys(way.kind for way in found)):
        points = sorted((way.seconds / exact, value(way), way.setting.split()) for way in found if way.kind == kind)
        colour, by = COLOURS[number], points[0][2][0]
        axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, marker="o", label=f"{kind}, by {by}")
        for x, y, (_, setting) in points:
            place = (5, -11) if kind == "TaylorSeer" else (-4, 7)  # its curve lies on that of exact steps
            axes.annotate(setting, (x, y), textcoords="offset points", xytext=place, fontsize=8, color=colour)
    axes.set_xlabel(f"seconds, as a share of those of {STEPS} exact steps")
    axes.set_ylabel(label)
    axes.set_xlim(0, 1.05)

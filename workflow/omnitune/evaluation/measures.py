"""Measures of one generated image: each is a function here and an entry of omnitune.config.choices.MEASURES."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from omnitune.config.choices import CHECKS, MEASURES
from omnitune.evaluation.prompts import Prompt
from omnitune.images.resize import resize

HIGHEST_PSNR = 100.0  # dB; equal images would be infinite, which no mean and no JSON can hold


@dataclass(frozen=True)
class Case:
    """A generated image and what it can be measured against.

    Attributes:
        prompt: what was asked.
        image: the answer, in RGB.
        target: the image that was wanted, in RGB and of any size, where the prompt names one.
        losses: held-out losses of the target, one for each time.
        check: name of the benchmark's check.
    """

    prompt: Prompt
    image: Image.Image
    target: Image.Image | None = None
    losses: Sequence[float] = ()
    check: str | None = None

    @cached_property
    def pixels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and target, brought to the image's size: [1, 3, H, W] in [0, 1] each.

        In float64, so that threads cannot change a printed digit.
        """
        assert self.target is not None
        return _pixels(self.image), _pixels(resize(self.target, self.image.size))


def measure(case: Case) -> dict[str, float]:
    """Each measure that a case can have, in the order of their table, to six digits."""
    found = {name: entry.load()(case) for name, entry in MEASURES.items() if entry.function}
    checked = CHECKS[case.check].load()(case.image, case.prompt.expect) if case.check else {}
    found |= {f"check_{name}": float(value) for name, value in checked.items() if f"check_{name}" in MEASURES}
    return {name: round(found[name], 6) for name in MEASURES if found.get(name) is not None}


def psnr(case: Case) -> float | None:
    """Peak signal to noise ratio to the target in dB, at most HIGHEST_PSNR."""
    if case.target is None:
        return None
    return min(float(peak_signal_noise_ratio(*case.pixels, data_range=1.0)), HIGHEST_PSNR)


def ssim(case: Case) -> float | None:
    """Structural similarity to the target, at most 1."""
    if case.target is None:
        return None
    similarity = structural_similarity_index_measure(*case.pixels, data_range=1.0)
    assert isinstance(similarity, torch.Tensor)
    return float(similarity)


def loss(case: Case) -> float | None:
    """Mean of the held-out losses."""
    return fmean(case.losses) if case.losses else None


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float64)).permute(2, 0, 1)[None] / 255

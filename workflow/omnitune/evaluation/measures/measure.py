"""Measures of one generated image: each is a function and an entry of omnitune.config.choices.MEASURES.

The functions lie in modules beside this, by what they are of, so that none loads what another needs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from omnitune.config.choices import CHECKS, MEASURES
from omnitune.evaluation.prompts import Prompt, open_image
from omnitune.images.resize import resize

Pixels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A generated image and what it can be measured against.

    Attributes:
        prompt: what was asked.
        image: the answer, in RGB.
        target: the image that was wanted, in RGB and of any size, where the prompt names one.
        losses: held-out losses of the target, one for each time.
        check: name of the benchmark's check.
        models: what the measures that need a model have loaded, by their names.
        found: what one measure leaves to another.
    """

    prompt: Prompt
    image: Image.Image
    target: Image.Image | None = None
    losses: Sequence[float] = ()
    check: str | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> list[Image.Image]:
        """The prompt's references, in RGB and of any size."""
        return [open_image(path) for path in self.prompt.input_images]

    @cached_property
    def source(self) -> Image.Image | None:
        """The image that was to be edited, brought to the answer's size; None where this is no edit of one image."""
        if self.prompt.task_type != "edit" or len(self.prompt.input_images) != 1:
            return None
        return resize(self.inputs[0], self.image.size)

    @cached_property
    def pixels(self) -> tuple[Pixels, Pixels]:
        """Image and target, brought to the image's size: [H, W, 3] in [0, 1] each."""
        assert self.target is not None
        return pixels_of(self.image), pixels_of(resize(self.target, self.image.size))


def measure(case: Case, names: Sequence[str]) -> dict[str, float]:
    """Those of the named measures that a case can have, and the figures of its check, to six digits, in their order."""
    found = {name: MEASURES[name].load()(case) for name in names if MEASURES[name].function}
    checked = CHECKS[case.check].load()(case.image, case.prompt.expect) if case.check else {}
    found |= {f"check_{name}": float(value) for name, value in checked.items() if f"check_{name}" in MEASURES}
    return {name: round(found[name], 6) for name in MEASURES if found.get(name) is not None}


def loss(case: Case) -> float | None:
    """Mean of the held-out losses."""
    return fmean(case.losses) if case.losses else None


def pixels_of(image: Image.Image) -> Pixels:
    """[H, W, 3] in [0, 1]; in float64, so that threads cannot change a printed digit."""
    return np.array(image, dtype=np.float64) / 255

"""Measures of an edit against the image that was to be edited: what should have stayed, and whether it did."""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from omnitune.evaluation.measures.measure import Case, pixels_of
from omnitune.images.motion import Motion, motion
from omnitune.images.resize import resize

EDITED = 0.06  # of the range of a channel: from where input and target differ, after noise was smoothed away
MARGIN = 1 / 64  # of the longer side, by which the edited region is widened: what lies at its border may change
LEAST_OUTSIDE = 0.05  # share of the image that must lie outside
HIGHEST = 100.0  # dB; equal pixels would be infinite


def shift(case: Case) -> float | None:
    """By how many pixels of the image its content lies off that of its input; None where too little agrees to tell."""
    found = _motion(case)
    return None if found is None else found.shift


def zoom(case: Case) -> float | None:
    """By how many percent its content is larger or smaller than that of its input."""
    found = _motion(case)
    return None if found is None else 100 * abs(found.zoom - 1)


def identity(case: Case) -> float | None:
    """Peak signal to noise ratio to the input in dB outside of what is edited, where input and target differ."""
    if case.source is None or case.target is None:
        return None
    outside = ~_edited(case.source, resize(case.target, case.image.size))
    if outside.mean() < LEAST_OUTSIDE:
        return None
    error = float(((pixels_of(case.image) - pixels_of(case.source))[outside] ** 2).mean())
    return min(-10 * float(np.log10(error)), HIGHEST) if error else HIGHEST


def _motion(case: Case) -> Motion | None:
    """Of image against input; found once for both measures."""
    if case.source is None:
        return None
    if "motion" not in case.found:
        case.found["motion"] = motion(case.source, case.image)
    return case.found["motion"]


def _edited(source: Image.Image, target: Image.Image) -> npt.NDArray[np.bool_]:
    """Where they differ [H, W], widened by a margin."""
    before, after = (pixels_of(image.filter(ImageFilter.GaussianBlur(1))) for image in (source, target))
    mask = Image.fromarray((np.abs(before - after).max(2) > EDITED).astype(np.uint8) * 255)
    margin = max(round(MARGIN * max(source.size)), 1)
    return np.asarray(mask.filter(ImageFilter.MaxFilter(2 * margin + 1))) > 0

"""Measures of all images of a benchmark together: how far they are from the targets as a set.

No image has a figure of its own. A measure is a function of the features of images and of targets, [N, D] each, to a
number.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from omnitune.config.benchmarks.measure import MeasureEntry
from omnitune.config.choices import MEASURES
from omnitune.evaluation.measures.encoders import Encoder
from omnitune.evaluation.prompts import open_image

FEWEST = 100  # images; of fewer, these distances say more of the number of images than of what they show
ROWS = 1024  # of a kernel that are held at a time
BATCH = 16


class _Features(torch.nn.Identity):
    """Stands where torchmetrics has a network: what it is given are features already."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.num_features = number


def fid(images: torch.Tensor, targets: torch.Tensor) -> float:
    """Fréchet distance between two normal distributions with the means and covariances of the features."""
    metric = FrechetInceptionDistance(feature=_Features(images.shape[1])).set_dtype(torch.float64)
    metric.update(targets, real=True)
    metric.update(images, real=False)
    return float(metric.compute())


def kid(images: torch.Tensor, targets: torch.Tensor) -> float:
    """Squared maximum mean discrepancy x 1000 with the cubic kernel of KID, over all images at once; without bias."""
    within = 0.0
    for features in (images, targets):
        itself = (features.square().sum(1) / features.shape[1] + 1) ** 3
        within += (_kernel_sum(features, features) - float(itself.sum())) / (len(features) * (len(features) - 1))
    return 1000 * (within - 2 * _kernel_sum(images, targets) / (len(images) * len(targets)))


def _kernel_sum(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the kernel (x y / D + 1)^3 over all pairs of rows, which are too many to be held at once."""
    return sum(float((rows @ other.T / one.shape[1] + 1).pow(3).sum()) for rows in one.split(ROWS))


def measure_sets(
    entries: Sequence[MeasureEntry], models: Mapping[str, Any], pairs: Sequence[tuple[Path, Path]]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Figures of a set of images, and why others are not measured.

    Args:
        entries: the benchmark's measures; those of single images are passed over.
        models: from `omnitune.evaluation.measures.encoders.load_models`.
        pairs: each prompt's first image with its target; more of one prompt are no more of a set.

    Returns:
        By measure its `value`, to six digits, `n`, the number of images, and `model`; by measure the reason.
    """
    asked = [entry for entry in entries if MEASURES[entry.name].of_set and entry.name in models]
    if len(pairs) < FEWEST:
        reason = f"{len(pairs)} images with a target; a figure of a set needs {FEWEST}"
        return {}, {entry.name: reason for entry in asked}
    features: dict[str | None, tuple[torch.Tensor, torch.Tensor]] = {}
    found = {}
    for entry in asked:
        if entry.model not in features:
            images, targets = zip(*pairs, strict=True)
            features[entry.model] = _read(models[entry.name], images), _read(models[entry.name], targets)
        value = MEASURES[entry.name].load()(*features[entry.model])
        found[entry.name] = {"value": round(value, 6), "n": len(pairs), "model": entry.model}
    return found, {}


def _read(encoder: Encoder, paths: Sequence[Path]) -> torch.Tensor:
    """Features [N, D] of files, in float64."""
    starts = range(0, len(paths), BATCH)
    return torch.cat([encoder.features([open_image(p) for p in paths[i : i + BATCH]]) for i in starts]).double()

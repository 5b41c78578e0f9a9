"""Guidance: which predictions a step makes of each image on its way, and how these are combined to one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from omnitune.models.transformer.step_cache import Branch


@dataclass
class Sample:
    """One image on its way.

    Attributes:
        prompt, negative: text features [L, D] of what is asked, and of what to lead away from.
        references: latents [C, h, w].
        latent: where it stands, [C, h, w].
        size: (width, height) in pixels, as it was asked for.
        scheduler: its own, as the times depend on its size, and a multistep solver remembers its last step.
    """

    prompt: torch.Tensor
    negative: torch.Tensor
    references: list[torch.Tensor]
    latent: torch.Tensor
    size: tuple[int, int]
    scheduler: Any


@dataclass
class Branches:
    """The predictions of one step, as one ragged batch: (sample and name, text features, references) each."""

    keys: list[Branch] = field(default_factory=list)
    texts: list[torch.Tensor] = field(default_factory=list)
    references: list[list[torch.Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, samples: Sequence[Sample], text_scale: float, image_scale: float) -> "Branches":
        """Of each sample the full prediction, and those that these scales guide by."""
        branches = cls()
        for i, sample in enumerate(samples):
            branches._add(i, "full", sample.prompt, sample.references)
        for i, sample in enumerate(samples):
            if text_scale > 1:
                branches._add(i, "none", sample.negative, [])
        for i, sample in enumerate(samples):
            if sample.references and text_scale > 1 and image_scale > 1:
                branches._add(i, "references", sample.negative, sample.references)
        return branches

    def _add(self, sample: int, name: str, text: torch.Tensor, references: list[torch.Tensor]) -> None:
        self.keys.append((sample, name))
        self.texts.append(text)
        self.references.append(references)

    @property
    def samples(self) -> list[int]:
        """The sample of each prediction, by its number."""
        return [sample for sample, _ in self.keys]

    def padded_texts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Text features [B, L, D] with their mask [B, L]."""
        lengths = torch.tensor([len(row) for row in self.texts], device=self.texts[0].device)
        padded = torch.nn.utils.rnn.pad_sequence(self.texts, batch_first=True)
        return padded, torch.arange(padded.shape[1], device=lengths.device) < lengths[:, None]

    def guided(self, outputs: Sequence[torch.Tensor], text_scale: float, image_scale: float) -> list[torch.Tensor]:
        """The velocity of each sample, of the outputs of all predictions."""
        predictions: dict[int, list[torch.Tensor]] = {}
        for i, output in zip(self.samples, outputs, strict=True):
            predictions.setdefault(i, []).append(output)
        return [_combined(predictions[i], text_scale, image_scale) for i in sorted(predictions)]


def _combined(predictions: list[torch.Tensor], text_scale: float, image_scale: float) -> torch.Tensor:
    """Combine (full), (full, none) or (full, none, with references)."""
    if len(predictions) == 1:
        return predictions[0]
    if len(predictions) == 2:
        full, none = predictions
        return none + text_scale * (full - none)
    full, none, reference = predictions
    return none + image_scale * (reference - none) + text_scale * (full - reference)

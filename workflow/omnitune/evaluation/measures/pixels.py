"""Measures of an image against its target, pixel by pixel."""

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from omnitune.evaluation.measures.measure import Case

HIGHEST_PSNR = 100.0  # dB; equal images would be infinite, which no mean and no JSON can hold


def psnr(case: Case) -> float | None:
    """Peak signal to noise ratio to the target in dB, at most HIGHEST_PSNR."""
    if case.target is None:
        return None
    return min(float(peak_signal_noise_ratio(*_tensors(case), data_range=1.0)), HIGHEST_PSNR)


def ssim(case: Case) -> float | None:
    """Structural similarity to the target, at most 1."""
    if case.target is None:
        return None
    similarity = structural_similarity_index_measure(*_tensors(case), data_range=1.0)
    assert isinstance(similarity, torch.Tensor)
    return float(similarity)


def _tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, 3, H, W] each."""
    image, target = (torch.from_numpy(pixels).permute(2, 0, 1)[None] for pixels in case.pixels)
    return image, target

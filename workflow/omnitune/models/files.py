"""Weights of strangers, once they are loaded: what they hold is finite. Their files: omnitune.io.weights."""

from collections.abc import Mapping
from pathlib import Path

import torch


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, as far as its type has them."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize == 1:  # there is no minimum of these
        return bool(torch.isfinite(tensor.detach().sum(dtype=torch.float64)))
    # it passes NaN on and, unlike isfinite of the tensor, takes no memory
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach()))


def require_finite(tensors: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Raises ValueError for a tensor with a NaN or an infinity in it."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{where}: {name} holds NaN or infinity: these weights are broken. Take others.")

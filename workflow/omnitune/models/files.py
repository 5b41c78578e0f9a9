"""Weight files of strangers: what they hold is whole and finite."""

from collections.abc import Mapping
from pathlib import Path

import torch

from .headers import read_header


def require_weights(folder: Path | str) -> None:
    """Raises ValueError for a .safetensors file of a folder that is damaged; see read_header."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        read_header(path)


def require_finite(tensors: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Raises ValueError for a tensor with a NaN or an infinity in it."""
    for name, tensor in tensors.items():
        # the sum of a tensor of any size takes no memory, unlike isfinite; it overflows in no finite weights
        if tensor.is_floating_point() and not torch.isfinite(tensor.detach().sum(dtype=torch.float64)):
            raise ValueError(f"{where}: {name} holds NaN or infinity: these weights are broken. Take others.")

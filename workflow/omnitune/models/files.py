"""Weights of strangers as they are loaded, and what they hold: it is finite. Their files: omnitune.io.weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from omnitune.errors import reason_of


@contextmanager
def loading(folder: Path | str) -> Iterator[None]:
    """Makes a ValueError with the folder of whatever a library raises where its files do not fit each other."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{folder}: cannot be loaded ({type(error).__name__}: {reason_of(error)[:300]}). A value of its JSON is "
            "none that its class takes, or does not fit its weights. Fetch the folder again."
        ) from error


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

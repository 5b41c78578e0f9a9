"""Weights of strangers as they are loaded, and what they hold: it is finite. Their files: omnitune.io.model_files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def load_whole(model: Any, folder: Path, *, unused: str = "", **options: Any) -> Any:
    """`from_pretrained` of a library's class.

    Args:
        model: the class.
        folder: of the weights.
        unused: how the names of tensors start that nobody needs; "" for none.
        options: for the library.

    Raises:
        ValueError: where the files lack a tensor, which a library would make up at random, or cannot be loaded.
    """
    with loading(folder):
        loaded, info = model.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    # of several files, diffusers says nothing of what none of them holds, and leaves it without memory
    empty = {name for name, tensor in loaded.state_dict().items() if tensor.is_meta}
    lost = sorted(name for name in empty | set(info["missing_keys"]) if not (unused and name.startswith(unused)))
    if lost:
        raise ValueError(f"{folder}: its files lack {len(lost)} tensors of the model, such as {', '.join(lost[:3])}.")
    return loaded


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

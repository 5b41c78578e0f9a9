"""Images between PIL and the tensors that the VAE takes: orientation, colour, size and range.

torch is imported where a tensor is made, so that counting and resizing images does not wait for it.
"""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from omnitune.images.metadata import orientation

if TYPE_CHECKING:
    import torch


def target_size(width: int, height: int, max_pixels: int, max_side_length: int, multiple: int = 16) -> tuple[int, int]:
    """Size of an image within both limits: never enlarged, sides rounded down to a multiple.

    Args:
        width, height: of the image, in pixels.
        max_pixels: limit of width * height.
        max_side_length: limit of the longer side.
        multiple: of both sides of the result; 16 is the VAE's factor 8 times the patch size 2.

    Returns:
        (width, height).

    Raises:
        ValueError: when a side would be rounded down to nothing.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image of {width} x {height} pixels has no content")
    ratio = min((max_pixels / (width * height)) ** 0.5, max_side_length / max(width, height), 1.0)
    new_width = int(width * ratio) // multiple * multiple
    new_height = int(height * ratio) // multiple * multiple
    if not new_width or not new_height:
        raise ValueError(
            f"an image of {width} x {height} pixels becomes {new_width} x {new_height} under max_pixels = "
            f"{max_pixels}, max_side_length = {max_side_length}: each side needs at least {multiple} pixels after the "
            "resize"
        )
    return new_width, new_height


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says; as stored where that cannot be read, as viewers show it."""
    try:
        return image if orientation(image) == 1 else ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF is common, says nothing about the pixels, and may make its reader raise anything
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright (EXIF orientation applied), in mode RGB, transparency over white; of any PIL mode."""
    image = upright(image)
    if image.mode.startswith("I"):
        # 16-bit grey: PIL's own conversion would clip it at 255
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at size (width, height), by Lanczos; the same image where it already has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> "torch.Tensor":
    """An RGB image as float32 [3, height, width] in [-1, 1]."""
    import torch

    values = np.divide(np.asarray(image).transpose(2, 0, 1), np.float32(127.5), dtype=np.float32, order="C")
    values -= 1
    return torch.from_numpy(values)


def to_pil(tensor: "torch.Tensor") -> Image.Image:
    """A tensor [3, height, width] in [-1, 1] (clipped) as an RGB image; the inverse of to_tensor."""
    pixels = ((tensor.detach().float() + 1.0) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())

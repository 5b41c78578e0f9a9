"""Images on their way into shards: upright, RGB, within the limits; untouched where they are all that already."""

import io
from typing import NamedTuple

from PIL import Image, ImageCms, ImageOps

from omnitune.data.decode import (
    FORMATS,
    MAX_PIXELS,
    MIN_SIDE,
    ImageFacts,
    ImageRefused,
    has_foreign_profile,
    inspect_image,
    orientation,
    own_pixel_limit,
    upright_size,
)
from omnitune.models.image_processor import resize, target_size, to_pil, to_rgb, to_tensor

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "ImageFacts",
    "ImageRefused",
    "PreparedImage",
    "inspect_image",
    "load_rgb",
    "prepare_image",
    "resize",
    "target_size",
    "to_pil",
    "to_rgb",
    "to_tensor",
]

KEPT_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
KEPT_MODES = frozenset({"RGB", "L", "P"})  # each becomes RGB on loading without a loss
JPEG_QUALITY = 95


class PreparedImage(NamedTuple):
    """An image as it goes into a shard: its file, extension, size in pixels, and whether the bytes are the original's."""

    data: bytes
    extension: str
    width: int
    height: int
    kept: bool


def load_rgb(data: bytes) -> Image.Image:
    """Decodes a file's bytes into an upright RGB image, transparency over white, colours as sRGB.

    Raises what Pillow raises on bytes that are no image.
    """
    with own_pixel_limit():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    upright = ImageOps.exif_transpose(image)
    return to_rgb(_to_srgb(upright) if has_foreign_profile(upright) else upright)


def prepare_image(data: bytes, max_pixels: int, max_side_length: int) -> PreparedImage:
    """Brings an image within the limits.

    Args:
        data: the file's bytes, as validated.
        max_pixels, max_side_length: limits of width x height and of the longer side, in pixels.

    Returns:
        The original bytes where they are a JPEG, PNG or WebP that needs no change at all; otherwise a JPEG of quality
        95 without chroma subsampling, resized by Lanczos.

    Raises:
        ValueError: where a side is rounded down to nothing under the limits.
    """
    with own_pixel_limit():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.format == "TIFF":
            image.load()  # which is when Pillow turns this format upright by itself
    size = target_size(*upright_size(image), max_pixels, max_side_length)
    if size == image.size and _is_plain(image):
        return PreparedImage(data, KEPT_EXTENSIONS[image.format or ""], *size, True)
    rgb = resize(load_rgb(data), size)
    rgb.info.clear()  # comments and profiles of the original
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return PreparedImage(buffer.getvalue(), "jpg", *size, False)


def _is_plain(image: Image.Image) -> bool:
    """Whether every reader takes the file for the same upright, opaque sRGB picture."""
    return (
        image.format in KEPT_EXTENSIONS
        and image.mode in KEPT_MODES
        and orientation(image) == 1
        and not image.has_transparency_data
        and not has_foreign_profile(image)
    )


def _to_srgb(image: Image.Image) -> Image.Image:
    """Converts from the image's own colour profile; a profile that is damaged or of another mode is left unused."""
    if image.mode not in {"RGB", "RGBA", "CMYK"}:
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image
    return converted if converted is not None else image

"""A small picture of an image that validation has decoded anyway, and what it shows of a pair."""

import math

from PIL import Image, ImageOps

from omnitune.images.motion import motion

PREVIEW_SIDE = 128  # pixels of the longer side
REDUCED_MODES = frozenset({"L", "RGB", "RGBA", "CMYK"})  # others would be converted at full size, in memory of its own
# From where a pair counts as shifted: a share of the longer side (4 pixels of 1024), and of the size.
SHIFT, ZOOM = 1 / 256, 0.01
SHIFTED = "shifted: the output's content lies off that of its input"


def preview_of(image: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """A decoded image, reduced to PREVIEW_SIDE, upright and in RGB; None where that would cost much, or it is smaller.

    Args:
        image: as it was decoded, a JPEG perhaps at a fraction of its size.
        size: width and height of the whole in pixels, not turned.
    """
    if image.mode not in REDUCED_MODES or max(size) < PREVIEW_SIDE:
        return None
    # A JPEG's fraction is rounded up: the last row and column may stand for less than a whole pixel.
    fraction = 2 ** round(math.log2(max(size) / max(image.size))) if image.format in {"JPEG", "MPO"} else 1
    box = (0.0, 0.0, min(size[0] / fraction, image.width), min(size[1] / fraction, image.height))
    scale = PREVIEW_SIDE / max(size)
    small = (max(round(size[0] * scale), 1), max(round(size[1] * scale), 1))
    reduced = image.resize(small, Image.Resampling.BILINEAR, box=box)
    if reduced.mode == "RGBA":
        reduced = Image.alpha_composite(Image.new("RGBA", small, "white"), reduced)
    reduced.info = {key: value for key, value in image.info.items() if key == "exif"}
    return ImageOps.exif_transpose(reduced).convert("RGB")


def is_shifted(before: Image.Image, after: Image.Image) -> bool:
    """Whether the content of one preview lies off that of the other, of the same size."""
    found = motion(before, after, side=PREVIEW_SIDE, search=False)
    return found is not None and (found.shift >= SHIFT * max(before.size) or abs(found.zoom - 1) >= ZOOM)

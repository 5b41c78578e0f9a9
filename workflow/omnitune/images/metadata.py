"""What an opened image says of itself beside its pixels: orientation, colour profile, bits per channel."""

import re

from PIL import Image

EXIF_ORIENTATION = 0x0112
TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
SIXTEEN_BITS = re.compile(r";16[BLNS]")  # in Pillow's names of how pixels are stored


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or none that can be read."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF is common and says nothing about the pixels; every viewer shows them as stored
        return 1
    return value if value in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the EXIF orientation is applied."""
    return turned_size(image.size, image)


def turned_size(size: tuple[int, int], image: Image.Image) -> tuple[int, int]:
    """The size (width, height), in pixels, turned as the EXIF orientation of the image says."""
    return (size[1], size[0]) if orientation(image) in TURNED else size

"""What is unusual but usable of an accepted image, in words."""

from pathlib import Path

from PIL import Image

from omnitune.images.colour import fits, has_other_curve, is_foreign, profile_of
from omnitune.images.metadata import SIXTEEN_BITS, orientation
from omnitune.io import storage

EXTENSIONS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".avif": "AVIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".jp2": "JPEG2000",
}
USUAL_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"})


def notes_on(place: str | Path, image: Image.Image) -> list[str]:
    """What is unusual but usable of an image that is open and not yet decoded."""
    notes = extension_notes(place, "JPEG" if image.format == "MPO" else image.format or "")
    notes += mode_notes(image.mode, str([tile[3] for tile in getattr(image, "tile", ())]))
    if is_foreign(image):
        notes.append("colour profile other than sRGB, converted to sRGB")
    elif not profile_of(image) and has_other_curve(image):
        notes.append("gAMA or cHRM other than those of sRGB, not used")
    elif profile_of(image) and not fits(image):
        notes.append("colour profile that is damaged or of another kind of pixels, not used")
    return notes


def extension_notes(place: str | Path, content: str) -> list[str]:
    """A note where the file's extension is not that of its content, a format as Pillow names it."""
    suffix = Path(str(place).partition("?")[0] if storage.is_url(place) else place).suffix.lower()
    return [] if EXTENSIONS.get(suffix) == content else [f"extension {suffix!r} holds {content}"]


def turn_notes(image: Image.Image) -> list[str]:
    """A note where the image is stored on its side or upside down."""
    return ["turned upright by its EXIF orientation"] if orientation(image) != 1 else []


def mode_notes(mode: str, stored: str) -> list[str]:
    """Notes on pixels that are not 8-bit RGB or grey; `stored` is Pillow's description of how they lie in the file."""
    if SIXTEEN_BITS.search(stored) or mode.startswith("I"):
        return ["more than 8 bits per channel, reduced to 8"]
    if mode in {"LA", "PA", "RGBA"}:
        return ["transparency, laid over white"]
    return [] if mode in USUAL_MODES else [f"colour mode {mode}, converted to RGB"]

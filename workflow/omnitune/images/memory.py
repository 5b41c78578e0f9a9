"""Memory that an image takes until it is an RGB picture, by its header: more than a job has is not decoded."""

from pathlib import Path

from PIL import Image

from omnitune.images.verdicts import ImageRefused

# Bytes that one image may take, its file included. Rules that decode have so much for each thread, and 500 MB besides.
MAX_MEMORY = 1_500_000_000
# Per pixel, as measured at 3000 x 3000: decoders of these formats keep whole pictures of their own beside Pillow's.
WEBP, AVIF, JPEG2000_BAND = 17, 13, 7
# Pillow keeps 4 bytes for a pixel; an opaque picture is copied once while it becomes RGB, and one that has transparency
# is laid over white in further ones.
OPAQUE, TRANSPARENT = 8, 16
COEFFICIENT = 2  # bytes of a JPEG's; of one with several scans, all are kept


def estimated_memory(image: Image.Image, size: int, has_scans: bool) -> int:
    """Bytes that an opened image takes, at most, while it is looked at or brought within the limits of shards.

    Args:
        image: with nothing decoded.
        size: of its file, in bytes.
        has_scans: of a JPEG, whether it has more than one scan.
    """
    bands = len(image.getbands())
    if image.format in {"JPEG", "MPO"}:  # decoded at an eighth of its size, or in strips
        pixel = 1 + COEFFICIENT * bands * has_scans
    elif image.format == "PNG":
        pixel = 5
    elif image.format == "WEBP":
        pixel = WEBP
    else:
        pixel = TRANSPARENT if image.has_transparency_data else OPAQUE
        decoder = {"AVIF": AVIF, "JPEG2000": JPEG2000_BAND * bands}
        pixel = max(pixel, decoder.get(image.format or "", 0))
    return size + image.width * image.height * pixel


def check_memory(image: Image.Image, size: int, place: str | Path, has_scans: bool | None = None) -> None:
    """Raises ImageRefused, too_much_memory, for an opened image of a file of `size` bytes.

    Without `has_scans`, a JPEG has several scans where its header says that it is progressive.
    """
    scans = bool(image.info.get("progressive")) if has_scans is None else has_scans
    check_estimate(image.format or "", *image.size, estimated_memory(image, size, scans), place)


def check_estimate(image_format: str, width: int, height: int, memory: int, place: str | Path) -> None:
    """Raises ImageRefused, too_much_memory, for an image that takes so many bytes."""
    if memory > MAX_MEMORY:
        message = (
            f"{place} ({image_format}, {width} x {height} pixels) takes about {memory / 1e6:,.0f} MB to "
            f"decode, of which a job has {MAX_MEMORY / 1e6:,.0f} for an image; save it smaller, or as baseline JPEG"
        )
        raise ImageRefused("too_much_memory", message)

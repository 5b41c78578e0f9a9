"""Colour profiles: whether one differs from sRGB, and conversion to sRGB. A profile's name says nothing about it."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError, TypeError)
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SRGB_GAMMA = 0.45455  # in gAMA (W3C PNG, section 11.3.2)
SRGB_CHROMATICITY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # in cHRM: white, red, green, blue
GAMMA_ROUNDING = 0.002
SAME = 2  # levels of 255 by which tables of sRGB differ among themselves


@lru_cache(maxsize=16)
def _space(profile: bytes) -> str | None:
    """Pillow's mode of the pixels that a profile is for; None where it cannot be read."""
    try:
        return SPACES.get(ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip())
    except PROFILE_ERRORS:
        return None


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes, space: str) -> bool:
    """Whether colours, greys and primaries among them, stay what they are on the way to sRGB."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels = ramp if space == "L" else np.concatenate([ramp, colours], axis=1)
    converted = _converted(Image.fromarray(pixels).convert(space), profile)
    return converted is None or bool(np.abs(np.asarray(converted, int) - pixels.astype(int)).max() <= SAME)


def _converted(image: Image.Image, profile: bytes) -> Image.Image | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except PROFILE_ERRORS:
        return None


def _colours_of(mode: str) -> str | None:
    """The mode without transparency and palette."""
    if mode in {"P", "PA", "RGB", "RGBA", "RGBX"}:
        return "RGB"
    return {"L": "L", "LA": "L", "1": "L", "CMYK": "CMYK"}.get(mode)


def profile_of(image: Image.Image) -> bytes | None:
    """The image's colour profile; None where there is none."""
    return image.info.get("icc_profile") or None


def fits(image: Image.Image) -> bool:
    """Whether the image's profile can be read and is for such pixels; others are left unused, as viewers do."""
    profile = profile_of(image)
    space = _colours_of(image.mode)
    return profile is not None and space is not None and _space(profile) == space


def is_foreign(image: Image.Image) -> bool:
    """Whether the image has a profile that is used and is not sRGB."""
    profile, space = profile_of(image), _colours_of(image.mode)
    if profile is None or space is None or not fits(image):
        return False
    return space == "CMYK" or not _is_srgb(profile, space)


def has_other_curve(image: Image.Image) -> bool:
    """Whether a PNG names a gamma or primaries that are not sRGB's, and no sRGB chunk, which comes before these."""
    if image.format != "PNG" or "srgb" in image.info:
        return False
    gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
    other_gamma = gamma is not None and abs(gamma - SRGB_GAMMA) > GAMMA_ROUNDING
    return other_gamma or (primaries is not None and not np.allclose(primaries, SRGB_CHROMATICITY, atol=GAMMA_ROUNDING))


def to_srgb(image: Image.Image) -> Image.Image:
    """The image, of a foreign profile, as RGB or RGBA in sRGB."""
    profile, space = profile_of(image), _colours_of(image.mode)
    if profile is None or space is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = _converted(image.convert(space), profile)
    if converted is None:
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    converted.getexif().update(image.getexif())
    return converted

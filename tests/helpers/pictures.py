"""Pictures to test with, and their bytes as files."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG changes it little."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([x * 255, y * 255, np.full_like(x, seed * 20 % 255)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Shapes of many sizes and colours."""
    rng, (width, height) = np.random.default_rng(seed), size
    image = Image.new("RGB", size, tuple(map(int, rng.integers(60, 200, 3))))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = (int(rng.integers(0, limit)) for limit in (width, height, max(width // 6, 8)))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + 4 + side, y + 4 + side // 2), fill=tuple(map(int, rng.integers(0, 255, 3))))
    return image.filter(ImageFilter.GaussianBlur(0.7))


def moved(image: Image.Image, right: float, down: float, zoom: float) -> Image.Image:
    """The image with its content zoomed about its centre, then shifted by pixels; black comes in."""
    across, up = (1 - 1 / zoom) * image.width / 2 - right / zoom, (1 - 1 / zoom) * image.height / 2 - down / zoom
    matrix = (1 / zoom, 0, across, 0, 1 / zoom, up)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)

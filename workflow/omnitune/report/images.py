"""Images as data URIs, small enough for a page that holds all of them, and where the whole ones lie."""

import base64
import io
import os.path
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from omnitune.evaluation.prompts import open_image

LARGEST_SIDE = 448
EXACT = 128  # an image of at most this side is kept as it is
PIXELATED = 64  # and of at most this one is shown enlarged, in whole pixels
BYTES_OF_ALL = 10_000_000  # in a page; a third more as text
FEWEST_BYTES = 0.06  # of a pixel; an even picture has fewer, which is then shown smaller than it could be
SMALLER = 0.75  # how much a side is shrunk where an image has too many bytes
QUALITY = 80


class Thumbnails:
    """Makes what the templates show of image files, all of a page within BYTES_OF_ALL.

    Args:
        page: folder of the page.
        count: how many images it will show.
    """

    def __init__(self, page: Path, count: int) -> None:
        self.page = page
        self.limit = BYTES_OF_ALL // max(count, 1)

    def entry(self, path: Path | None, caption: str, alt: str) -> dict[str, Any]:
        """Of an image file: uri, size in pixels, caption, alternative text, and the file seen from the page.

        Of an image that is missing, None, it is the caption alone.

        Small images are kept exactly (PNG); larger ones, or those of which there are too many, are shrunk and lossy.

        Raises:
            ValueError: for a file that is no image.
        """
        if path is None:
            return {"uri": "", "caption": f"{caption}: missing"}
        image = open_image(path)
        width, height = image.size
        pixelated = max(image.size) <= PIXELATED
        kind, data = _encoded(image, self.limit)
        shown = self._shown_size(width, height)
        return {
            "uri": f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}",
            "width": shown[0],
            "height": shown[1],
            "caption": caption,
            "alt": f"{alt} ({width} x {height} pixels)",
            "pixelated": pixelated,
            "full": quote(Path(os.path.relpath(path, self.page)).as_posix()),
        }

    @staticmethod
    def _shown_size(width: int, height: int) -> tuple[int, int]:
        scale = min(1, LARGEST_SIDE / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def _encoded(image: Image.Image, limit: int) -> tuple[str, bytes]:
    """(format, bytes), at most `limit` as far as a few pixels allow it; shrinks the image."""
    if max(image.size) <= EXACT:
        data = _bytes(image, "png")
        if len(data) <= limit:
            return "png", data
    side = max(16, int(min(LARGEST_SIDE, max(image.size), (limit / FEWEST_BYTES) ** 0.5)))
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3)
    while True:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        data = _bytes(image, "webp", quality=QUALITY, method=2)
        if len(data) <= limit or side <= 16:
            return "webp", data
        # bytes go with the area
        side = max(16, int(side * min(SMALLER, (limit / len(data)) ** 0.5)))


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()

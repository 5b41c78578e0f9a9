"""Images as data URIs, small enough for a page that holds all of them."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from omnitune.evaluation.prompts import open_image

LARGEST_SIDE = 448
PIXELATED = 128  # an image of at most this side is shown in whole pixels


def image_entry(path: Path | None, caption: str, alt: str) -> dict[str, Any]:
    """What the template shows of an image file: uri, size in pixels, caption and alternative text.

    Of an image that is missing, None, it shows the caption alone.

    Small images are kept exactly (PNG); larger ones are shrunk to LARGEST_SIDE and saved as JPEG.

    Raises:
        ValueError: for a file that is no image.
    """
    if path is None:
        return {"uri": "", "caption": f"{caption}: missing"}
    image = open_image(path)
    width, height = image.size
    kind = "png"
    if max(image.size) > PIXELATED:
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        kind = "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 86} if kind == "jpeg" else {}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "uri": f"data:image/{kind};base64,{data}",
        "width": image.width,
        "height": image.height,
        "caption": caption,
        "alt": f"{alt} ({width} x {height} pixels)",
        "pixelated": kind == "png",
    }

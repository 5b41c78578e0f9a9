"""Does an image show the scene that was asked for? Read from the pixels, with no model.

A pixel belongs to the shape where it is nearer to a shape colour than to the expected background. From these pixels
come their colour, their place and their outline, from the others the background's colour. Numbers are given for each,
and `passed` is all four.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from omnitune.demo.scenes import BACKGROUND_COLOURS, SHAPE_COLOURS, SHAPES, Scene, shape_mask

POSITION_TOLERANCE = 0.12  # of the shorter side; two places lie 0.18 and more apart
AREA_RANGE = (0.5, 1.8)  # found over expected area
BACKGROUND_TOLERANCE = 45.0  # RGB distance; two backgrounds lie 90 and more apart
COLOUR_TOLERANCE = 75.0  # RGB distance of the median shape pixel
OVERLAP_MINIMUM = 0.4  # intersection over union with the expected shape: a smear over the place does not reach it
SOFTENINGS = (
    0.0,
    3.0,
)  # pixels: a shape may be drawn sharp, or with the round corners that the VAE leaves of a small one


def _mask(shape: str, expect: dict[str, Any], width: int, height: int, softening: float = 0.0) -> np.ndarray:
    """Boolean [height, width]: the pixels of a shape, of the place and size that are expected."""
    scene = Scene(shape, "", "", "", "plain", tuple(expect["position"]), expect["size"])
    return np.asarray(shape_mask(scene, width, height).filter(ImageFilter.GaussianBlur(softening))) >= 128


def _centroid(mask: np.ndarray) -> np.ndarray:
    """(x, y) of the middle of a mask, relative to width and height."""
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / mask.shape[::-1]


def _likeness(found: np.ndarray, shape: str, expect: dict[str, Any], softening: float) -> float:
    """Intersection over union of what was found with the shape, drawn at the same place with the same area."""
    height, width = found.shape
    drawn = _mask(shape, expect, width, height, softening)
    for _ in range(2):
        if not drawn.any():
            return 0.0
        centre = np.array(expect["position"]) + _centroid(found) - _centroid(drawn)
        expect = {"position": centre, "size": expect["size"] * float(found.sum() / drawn.sum()) ** 0.5}
        drawn = _mask(shape, expect, width, height, softening)
    return float((found & drawn).sum() / (found | drawn).sum())


def _most_alike(found: np.ndarray, expect: dict[str, Any]) -> str:
    """The shape whose drawing, sharp or soft, is nearest to what was found."""
    return max(SHAPES, key=lambda shape: max(_likeness(found, shape, expect, soft) for soft in SOFTENINGS))


def _shape_pixels(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Boolean [height, width]: nearer to one of the shape colours than to any background colour.

    The expected background counts as the mean that it is; edges, which mix two colours, fall to either side evenly.
    """
    shapes = np.array(list(SHAPE_COLOURS.values()), dtype=np.float32)
    grounds = np.array([*BACKGROUND_COLOURS.values(), background], dtype=np.float32)
    to_shape = np.linalg.norm(pixels[:, :, None] - shapes, axis=-1).min(-1)
    to_ground = np.linalg.norm(pixels[:, :, None] - grounds, axis=-1).min(-1)
    return to_shape < to_ground


def check_scene(image: Image.Image, expect: dict[str, Any]) -> dict[str, Any]:
    """Compare an image of any size with the expected geometry (see demo.expectation).

    Returns `shape`, `color`, `position`, `background` (1.0 right, 0.0 wrong), the numbers behind them (`color_distance`
    and `background_distance` in RGB levels, `position_error` in shorter sides, `area_ratio`, `overlap` as intersection
    over union) and `passed`, True where all four are right. Numbers that an image without any shape cannot give are
    None.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    height, width = pixels.shape[:2]
    asked = np.array(SHAPE_COLOURS[expect["color"]], dtype=np.float32)
    ground = np.array(expect["background"], dtype=np.float32)
    expected = _mask(expect["shape"], expect, width, height)
    found = _shape_pixels(pixels, ground)

    rest = pixels[~(found | expected)]
    ground_distance = float(np.linalg.norm(np.median(rest, axis=0) - ground)) if len(rest) else None
    result: dict[str, Any] = {
        "color_distance": None,
        "position_error": None,
        "area_ratio": float(found.sum() / expected.sum()),
        "overlap": float((found & expected).sum() / (found | expected).sum()),
        "background_distance": ground_distance,
        "shape": 0.0,
        "color": 0.0,
        "position": 0.0,
        "background": float(ground_distance is not None and ground_distance <= BACKGROUND_TOLERANCE),
    }
    if found.any():
        median = np.median(pixels[found], axis=0)
        result["color_distance"] = float(np.linalg.norm(median - asked))
        nearest = min(SHAPE_COLOURS, key=lambda name: float(np.linalg.norm(median - np.array(SHAPE_COLOURS[name]))))
        result["color"] = float(nearest == expect["color"] and result["color_distance"] <= COLOUR_TOLERANCE)
        rows, columns = np.nonzero(found)
        wanted_rows, wanted_columns = np.nonzero(expected)
        offset = np.hypot(columns.mean() - wanted_columns.mean(), rows.mean() - wanted_rows.mean())
        result["position_error"] = float(offset / min(width, height))
        near = result["position_error"] <= POSITION_TOLERANCE and result["overlap"] >= OVERLAP_MINIMUM
        result["shape"] = float(_most_alike(found, expect) == expect["shape"])
        result["position"] = float(near and AREA_RANGE[0] <= result["area_ratio"] <= AREA_RANGE[1])
    result["passed"] = bool(result["shape"] and result["color"] and result["position"] and result["background"])
    return result

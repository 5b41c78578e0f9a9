"""How far the content of one picture lies off that of another: shift and zoom, which an edit should leave as they were.

Edges of both pictures are compared, as a new colour leaves them where they are. The shift and zoom of the whole are
found by phase correlation at reduced size; then tiles are moved one by one, and those that agree say it exactly. What
was edited, and moves by itself, is in tiles that do not agree.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import chain

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
Complex = npt.NDArray[np.complexfloating]

SIDES = (128, 512)  # fewest and most pixels of the longer side that is looked at
COARSE_SIDE = 128  # where the whole is compared
ZOOMS = tuple(round(1.02**power, 4) for power in range(-10, 11))  # tried at reduced size: 0.82 to 1.22
TILES = 7  # across and down, each overlapping the next by half
AGREEMENT, LEAST_TILES = 0.3, 5  # share and number of the tiles with edges that must agree
TOLERANCES = (8.0, 2.0, 1.0)  # pixels at the fine size within which a tile agrees, pass by pass
STARTS = 4  # motions from which the search starts, the most likely first
LEAST_EDGES = 2.0  # of 255: the strength from which a tile has edges


@dataclass(frozen=True)
class Motion:
    """Where content lies in a picture, seen from another of the same size.

    Attributes:
        right, down: by how many pixels the content of the picture's centre has moved.
        zoom: by what its size was multiplied.
    """

    right: float
    down: float
    zoom: float

    @property
    def shift(self) -> float:
        """Length of the shift in pixels."""
        return float(np.hypot(self.right, self.down))


STILL = Motion(0.0, 0.0, 1.0)


def motion(before: Image.Image, after: Image.Image, side: int = SIDES[1], search: bool = True) -> Motion | None:
    """How `after` lies off `before`; None where too little of the two agrees to say it.

    Args:
        before, after: in RGB and of one size; the result is in their pixels.
        side: to which a longer one is reduced to be compared.
        search: look beyond shifts of a sixteenth of that side and zooms of 3 %, too.
    """
    assert before.size == after.size, f"{before.size} and {after.size}"
    size = _with_side(before.size, min(max(*before.size, SIDES[0]), side))
    edges, after = _edges(before.resize(size, Image.Resampling.BICUBIC)), after.resize(size, Image.Resampling.BICUBIC)
    for start in chain([STILL], _starts(edges, after) if search else ()):  # most edits leave all where it was
        found = _refined(edges, after, start)
        if found is not None:
            scale = before.width / size[0]
            return Motion(found.right * scale, found.down * scale, found.zoom)
    return None


def _with_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """A size with the longer side brought to `side`, in whole pixels."""
    scale = side / max(size)
    return max(round(size[0] * scale), 16), max(round(size[1] * scale), 16)


def _starts(edges: Floats, after: Image.Image) -> Iterator[Motion]:
    """The motions of the whole with the highest peaks of phase correlation, found at reduced size."""
    size = _with_side(after.size, COARSE_SIDE)
    reduced = after.resize(_with_side(after.size, 2 * COARSE_SIDE), Image.Resampling.BICUBIC)
    window = _window(size[1], size[0])
    small = _resized(edges, size) * window
    # Edges that are zoomed are nearly those of a zoomed picture, at a sixteenth of the time.
    there = Image.fromarray(_resized(_edges(reduced), size))
    moved = np.stack([np.asarray(_undone(there, Motion(0, 0, zoom))) * window for zoom in ZOOMS])
    shifts, peaks = _shifts(_spectrum(small[None]), moved)
    for number in np.argsort(-peaks)[:STARTS]:
        right, down = shifts[number] * (after.width / size[0]) * ZOOMS[number]
        yield Motion(float(right), float(down), ZOOMS[number])


def _refined(edges: Floats, after: Image.Image, start: Motion) -> Motion | None:
    """The motion that most tiles agree on, from one that is about right; None where they do not agree."""
    found = start
    tiles, centres = _tiles(edges)
    textured = tiles.mean((1, 2)) >= LEAST_EDGES
    if textured.sum() < LEAST_TILES:
        return None
    centres, window = centres[textured], _window(*tiles.shape[1:])
    spectra = _spectrum(tiles[textured] * window)
    for tolerance in TOLERANCES:
        moved = _tiles(_edges(_undone(after, found)))[0][textured]
        shifts, _ = _shifts(spectra, moved * window)
        fitted = _fit(centres, shifts, tolerance)
        if fitted is None:
            return None
        # What is left after `found` was undone comes on top of it.
        found = Motion(
            found.right + found.zoom * fitted.right, found.down + found.zoom * fitted.down, found.zoom * fitted.zoom
        )
    return found


def _fit(centres: Floats, shifts: Floats, tolerance: float) -> Motion | None:
    """Least squares of shift = (right, down) + (zoom - 1) * centre over the tiles that agree; None where too few do."""
    agreeing = np.abs(shifts - np.median(shifts, axis=0)).max(1) <= 2 * tolerance
    for _ in range(3):
        if agreeing.sum() < max(LEAST_TILES, AGREEMENT * len(shifts)):
            return None
        here, there = centres[agreeing], shifts[agreeing]
        middle, mean = here.mean(0), there.mean(0)
        spread = float(((here - middle) ** 2).sum())
        growth = float(((here - middle) * (there - mean)).sum()) / spread if spread else 0.0
        right, down = mean - growth * middle
        agreeing = np.abs(shifts - (right, down) - growth * centres).max(1) <= tolerance
    return Motion(float(right), float(down), 1 + growth)


def _undone(image: Image.Image, motion: Motion) -> Image.Image:
    """An image with a motion taken back: its content lies where it lay before; what lay outside is black."""
    (width, height), zoom = image.size, motion.zoom
    matrix = (
        *(zoom, 0, motion.right + (1 - zoom) * width / 2),
        *(0, zoom, motion.down + (1 - zoom) * height / 2),
    )
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _edges(image: Image.Image) -> Floats:
    """Strength of edges [H, W]: the length of the gradient, in the channel where it is longest."""
    pixels = np.asarray(image, dtype=np.float32)
    across, down = np.zeros_like(pixels), np.zeros_like(pixels)
    across[:, 1:-1] = pixels[:, 2:] - pixels[:, :-2]
    down[1:-1] = pixels[2:] - pixels[:-2]
    squares = across * across + down * down
    return np.sqrt(reduce(np.maximum, np.moveaxis(squares, 2, 0))) / 2


def _window(height: int, width: int) -> Floats:
    """Fades to 0 at the borders, which would be edges of their own to a Fourier transform."""
    return np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)


def _resized(edges: Floats, size: tuple[int, int]) -> Floats:
    return np.asarray(Image.fromarray(edges).resize(size, Image.Resampling.BOX))


def _tiles(edges: Floats) -> tuple[Floats, Floats]:
    """Square tiles [N, side, side] of an image, and their centres [N, 2] (right, down) from its centre."""
    height, width = edges.shape
    side = min(2 * max(height, width) // (TILES + 1), height, width)
    tops, lefts = (_places(length, side) for length in (height, width))
    tiles = np.stack([edges[top : top + side, left : left + side] for top in tops for left in lefts])
    centres = [(left + side / 2 - width / 2, top + side / 2 - height / 2) for top in tops for left in lefts]
    return tiles, np.array(centres, dtype=np.float32)


def _places(length: int, side: int) -> list[int]:
    number = max(round(2 * length / side) - 1, 1)
    return [round(place) for place in np.linspace(0, length - side, number)]


def _spectrum(images: Floats) -> Complex:
    return np.fft.rfft2(images - images.mean((1, 2), keepdims=True))


def _shifts(before: Complex, after: Floats) -> tuple[Floats, Floats]:
    """Phase correlation of images [N, H, W] with the spectra of others.

    Returns:
        The shifts [N, 2] (right, down) to a part of a pixel, and the heights of the peaks [N].
    """
    height, width = after.shape[1:]
    cross = np.conj(before) * _spectrum(after)
    strength = np.abs(cross)
    frequencies = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2
    # High frequencies are noise; a Gaussian in place of a cut makes the peak one, too, whose top is then known exactly.
    cross *= np.exp(-frequencies / (2 * 0.15**2)) / np.sqrt(strength * strength.mean((1, 2), keepdims=True) + 1e-6)
    plane = np.fft.irfft2(cross, s=(height, width))
    tops = plane.reshape(len(plane), -1).argmax(1)
    rows, columns = np.unravel_index(tops, (height, width))
    numbers = np.arange(len(plane))
    down = rows + _top(*(plane[numbers, (rows + step) % height, columns] for step in (-1, 0, 1)))
    right = columns + _top(*(plane[numbers, rows, (columns + step) % width] for step in (-1, 0, 1)))
    down, right = (down + height / 2) % height - height / 2, (right + width / 2) % width - width / 2
    return np.stack([right, down], axis=1).astype(np.float32), plane[numbers, rows, columns].astype(np.float32)


def _top(before: Floats, peak: Floats, after: Floats) -> Floats:
    """Where between -0.5 and 0.5 a Gaussian through three values has its top."""
    left, middle, right = (np.log(np.maximum(values, 1e-9)) for values in (before, peak, after))
    bend = np.minimum(left + right - 2 * middle, -1e-9)
    return np.clip((left - right) / (2 * bend), -0.5, 0.5)

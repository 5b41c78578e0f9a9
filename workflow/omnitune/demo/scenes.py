"""Scenes of the demo: one shape of one colour at one place on one background, and the renderer that draws them.

Everything is small on purpose: six shape colours, six background colours that none of them resembles, four shapes and
five places. A transformer of a few million parameters draws them, and `omnitune.demo.check` can tell from the pixels
alone whether an image shows what was asked.
"""

import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageChops, ImageDraw

Rgb = tuple[int, int, int]

# No two colours (of either palette) are closer than 90 in RGB, so that a nearest-colour test has a wide margin.
SHAPE_COLOURS: dict[str, Rgb] = {
    "red": (215, 35, 35),
    "green": (40, 150, 60),
    "blue": (40, 80, 225),
    "yellow": (250, 220, 30),
    "purple": (140, 50, 180),
    "white": (255, 255, 255),
}
BACKGROUND_COLOURS: dict[str, Rgb] = {
    "grey": (128, 128, 128),
    "black": (36, 36, 36),
    "pink": (245, 165, 200),
    "brown": (120, 75, 45),
    "cyan": (120, 205, 215),
    "orange": (225, 130, 60),
}
SHAPES = ("circle", "square", "triangle", "star")
PATTERNS = ("plain", "shaded", "striped")
PLACES: dict[str, tuple[float, float]] = {
    "left": (0.3, 0.5),
    "right": (0.7, 0.5),
    "top": (0.5, 0.3),
    "bottom": (0.5, 0.7),
    "centre": (0.5, 0.5),
}
PLACE_PHRASES = {
    "left": "on the left of",
    "right": "on the right of",
    "top": "at the top of",
    "bottom": "at the bottom of",
    "centre": "in the centre of",
}

SIZE = 0.5  # nominal diameter of a shape, as a fraction of the shorter side
SIZE_JITTER = 0.01
PLACE_JITTER = 0.01
PATTERN_CONTRAST = 12  # a pattern leaves its colour by at most this many levels
SUPERSAMPLING = 4
STAR_INNER = 0.28  # inner radius of the star, as a fraction of `size`
# Distance from the centre of a shape to its corners, as a fraction of `size`: chosen so that all fit at every place.
CORNER_RADIUS = {"square": 0.6, "triangle": 0.57, "star": 0.57}


@dataclass(frozen=True)
class Scene:
    """One picture. `centre` is relative to width and height, `size` to the shorter side; None as `shape`: none."""

    shape: str | None
    colour: str
    place: str
    background: str
    pattern: str
    centre: tuple[float, float]
    size: float

    @property
    def layout(self) -> tuple[str | None, str, str, str, str]:
        """What a caption can say about the scene: everything but the jitter."""
        return (self.shape, self.colour, self.place, self.background, self.pattern)

    @property
    def background_phrase(self) -> str:
        """The background in words, such as `striped grey background`."""
        adjective = "" if self.pattern == "plain" else f"{self.pattern} "
        return f"{adjective}{self.background} background"

    @property
    def caption(self) -> str:
        """The scene in words, such as `a red circle on the left of a grey background`."""
        article = "an" if self.background_phrase[0] in "aeiou" else "a"
        return f"a {self.colour} {self.shape} {PLACE_PHRASES[self.place]} {article} {self.background_phrase}"

    @property
    def is_grey(self) -> bool:
        """True where the scene holds no hue, so that a greyscale file loses nothing."""
        return self.background in {"grey", "black"} and (self.shape is None or self.colour == "white")


def random_centre(rng: random.Random, place: str) -> tuple[float, float]:
    """A jittered centre at `place`, relative to width and height (four decimals, so that it prints as it is)."""
    x, y = PLACES[place]
    return (
        round(x + rng.uniform(-PLACE_JITTER, PLACE_JITTER), 4),
        round(y + rng.uniform(-PLACE_JITTER, PLACE_JITTER), 4),
    )


def random_scene(rng: random.Random) -> Scene:
    """A scene drawn from `rng`; four in five backgrounds are plain."""
    place = rng.choice(tuple(PLACES))
    return Scene(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(SHAPE_COLOURS)),
        place=place,
        background=rng.choice(tuple(BACKGROUND_COLOURS)),
        pattern=rng.choices(PATTERNS, weights=(8, 1, 1))[0],
        centre=random_centre(rng, place),
        size=round(SIZE + rng.uniform(-SIZE_JITTER, SIZE_JITTER), 4),
    )


def _polygon(shape: str, centre: tuple[float, float], radius: float, inner: float) -> list[tuple[float, float]]:
    """Corners in pixels, the first one straight up; a square stands on its side."""
    corners, turn = {"square": (4, math.pi / 4), "triangle": (3, 0.0), "star": (10, 0.0)}[shape]
    points = []
    for k in range(corners):
        angle = 2 * math.pi * k / corners + turn
        r = inner if shape == "star" and k % 2 else radius
        points.append((centre[0] + r * math.sin(angle), centre[1] - r * math.cos(angle)))
    return points


def shape_mask(scene: Scene, width: int, height: int) -> Image.Image:
    """Coverage of the shape, an `L` image of the asked size: 255 inside, 0 outside, antialiased on the edge."""
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), 0)
    if scene.shape is None:
        return mask.resize((width, height))
    size = scene.size * min(mask.size)
    x, y = scene.centre[0] * mask.width, scene.centre[1] * mask.height
    draw = ImageDraw.Draw(mask)
    if scene.shape == "circle":
        draw.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=255)
    else:
        corners = _polygon(scene.shape, (x, y), CORNER_RADIUS[scene.shape] * size, STAR_INNER * size)
        draw.polygon(corners, fill=255)
    return mask.resize((width, height), Image.Resampling.BOX)


@cache
def _pattern_offsets(pattern: str, width: int, height: int) -> Image.Image:
    """An `L` image of 128 plus the levels that the pattern adds: shaded is lighter above, striped in six flat bands."""
    if pattern == "plain":
        return Image.new("L", (width, height), 128)
    column = Image.new("L", (1, height))
    for y in range(height):
        if pattern == "shaded":
            level = PATTERN_CONTRAST * (1 - 2 * (y + 0.5) / height)
        else:
            level = PATTERN_CONTRAST * (1 if int(6 * (y + 0.5) / height) % 2 else -1)
        column.putpixel((0, y), 128 + round(level))
    return column.resize((width, height), Image.Resampling.NEAREST)


def render_background(scene: Scene, width: int, height: int) -> Image.Image:
    """The background alone, RGB."""
    flat = Image.new("RGB", (width, height), BACKGROUND_COLOURS[scene.background])
    offsets = _pattern_offsets(scene.pattern, width, height)
    return ImageChops.add(flat, Image.merge("RGB", [offsets] * 3), scale=1, offset=-128)


def render(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB image of the asked size in pixels."""
    image = render_background(scene, width, height)
    if scene.shape is not None:
        image.paste(SHAPE_COLOURS[scene.colour], (0, 0, width, height), shape_mask(scene, width, height))
    return image


def render_with_hole(scene: Scene, width: int, height: int) -> Image.Image:
    """A white shape as a transparent hole (RGBA): composited over white, it is `render(scene)` to within one level."""
    if scene.colour != "white" or scene.shape is None:
        raise ValueError(f"only a white shape can be a hole that shows white, not {scene.colour} {scene.shape}")
    image = render_background(scene, width, height).convert("RGBA")
    image.putalpha(ImageChops.invert(shape_mask(scene, width, height)))
    return image

"""What a prompt's `expect` says of a scene of the demo, for `check: demo_scene`. Imports nothing heavy."""

from typing import Annotated, Any

from pydantic import Field

from omnitune.config.base import Section
from omnitune.config.choices import OneOf
from omnitune.demo.scenes import BACKGROUND_COLOURS, SHAPE_COLOURS, SHAPES, Scene

Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(ge=0, le=255)]


class Expectation(Section):
    """A scene that an image should show.

    Attributes:
        shape: the one shape.
        color: its colour.
        position: its centre, relative to width and height.
        size: its diameter, relative to the shorter side.
        background: mean RGB around it.
        width, height: the size that it was drawn at, for people.
    """

    shape: Annotated[str, OneOf(SHAPES)]
    color: Annotated[str, OneOf(SHAPE_COLOURS)]
    position: Annotated[list[Share], Field(min_length=2, max_length=2)]
    size: Annotated[float, Field(gt=0, le=1)]
    background: Annotated[list[Level], Field(min_length=3, max_length=3)]
    width: int | None = None
    height: int | None = None


def expectation(scene: Scene, width: int, height: int) -> dict[str, Any]:
    """That of a scene drawn at width x height, in plain JSON values; raises ValueError for one without a shape."""
    if scene.shape is None:
        raise ValueError("the check needs a scene with a shape")
    return {
        "shape": scene.shape,
        "color": scene.colour,
        "position": list(scene.centre),
        "size": scene.size,
        "background": list(BACKGROUND_COLOURS[scene.background]),
        "width": width,
        "height": height,
    }

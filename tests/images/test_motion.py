"""How far content lies off: told to a pixel and half a percent, of pictures that were edited as well, or not at all."""

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import moved, scene
from omnitune.images.motion import Motion, motion

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [(320, 256), (96, 128)])
@pytest.mark.parametrize("asked", [(0, 0, 1), (3, -2, 1), (0.5, 7.25, 1), (0, 0, 1.03), (-4, 2, 0.95), (2, 1, 1.005)])
def test_shift_and_zoom_are_found_through_an_edit(size: tuple[int, int], asked: tuple[float, float, float]) -> None:
    """With a new object over a ninth of it, other colours and noise."""
    before = scene(size, seed=7)
    after = moved(before, *asked)
    after.paste(scene((size[0] // 3, size[1] // 3), seed=5), (size[0] // 4, size[1] // 3))
    noise = np.random.default_rng(1).normal(0, 3, (size[1], size[0], 3))
    after = Image.fromarray(np.clip(255 - np.asarray(after) + noise, 0, 255).astype(np.uint8))
    found = motion(before, after)
    assert found is not None
    assert np.hypot(found.right - asked[0], found.down - asked[1]) < 1
    assert abs(found.zoom - asked[2]) < 0.005


def test_the_same_picture_lies_where_it_lay() -> None:
    picture = scene((256, 256))
    found = motion(picture, picture)
    assert found is not None and found.shift < 0.01 and abs(found.zoom - 1) < 1e-4


def test_nothing_is_said_of_pictures_that_have_nothing_in_common() -> None:
    assert motion(scene((128, 128), seed=1), scene((128, 128), seed=2)) is None
    assert motion(Image.new("RGB", (128, 128)), Image.new("RGB", (128, 128), "red")) is None


def test_length_of_a_shift() -> None:
    assert Motion(3, -4, 1).shift == 5

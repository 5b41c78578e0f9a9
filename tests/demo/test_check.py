"""The demo's check passes what was asked for and nothing else."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from omnitune.demo.check import check_scene
from omnitune.demo.dataset import draw_drafts
from omnitune.demo.expectation import expectation
from omnitune.demo.scenes import BACKGROUND_COLOURS, SHAPE_COLOURS, random_scene, render

pytestmark = pytest.mark.unit

SIZES = ((64, 64), (64, 48), (48, 64), (80, 48))


def test_colours_are_well_separated() -> None:
    colours = [np.array(value, float) for value in (*SHAPE_COLOURS.values(), *BACKGROUND_COLOURS.values())]
    distances = [np.linalg.norm(a - b) for k, a in enumerate(colours) for b in colours[:k]]
    assert min(distances) > 90


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_true_scenes_pass_also_when_blurred(size: tuple[int, int]) -> None:
    rng = random.Random(5)
    sharp, soft = [], []
    for _ in range(100):
        scene = random_scene(rng)
        image = render(scene, 2 * size[0], 2 * size[1]).resize(size, Image.Resampling.LANCZOS)
        expect = expectation(scene, *size)
        sharp.append(check_scene(image, expect)["passed"])
        soft.append(check_scene(image.filter(ImageFilter.GaussianBlur(1)), expect)["passed"])
    assert np.mean(sharp) >= 0.98
    assert np.mean(soft) >= 0.95


@pytest.mark.slow
def test_unedited_inputs_fail() -> None:
    for task in ("edit", "in_context", "background"):
        _, heldout = draw_drafts(task, 0)
        for draft in heldout:
            result = check_scene(render(draft.inputs[0], 64, 64), expectation(draft.output, 64, 64))
            assert not result["passed"], (draft, result)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_fail_and_give_no_numbers_of_a_shape(level: int) -> None:
    _, heldout = draw_drafts("t2i", 0)
    for draft in heldout:
        result = check_scene(Image.new("RGB", (64, 64), (level,) * 3), expectation(draft.output, 64, 64))
        assert not result["passed"]
        if level == 128:
            assert result["color_distance"] is None and result["area_ratio"] == 0


@pytest.mark.slow
def test_noise_fails() -> None:
    rng = np.random.default_rng(0)
    _, heldout = draw_drafts("t2i", 0)
    for draft in heldout:
        noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        assert not check_scene(noise, expectation(draft.output, 64, 64))["passed"]


def test_one_wrong_thing_shows_in_its_own_score() -> None:
    scene = replace(random_scene(random.Random(0)), colour="red", place="left", centre=(0.26, 0.5), background="grey")
    expect = expectation(scene, 64, 64)
    cases = {
        "color": replace(scene, colour="blue"),
        "position": replace(scene, centre=(0.74, 0.5)),
        "background": replace(scene, background="cyan"),
    }
    for wrong, changed in cases.items():
        result = check_scene(render(changed, 64, 64), expect)
        assert {name for name in cases if not result[name]} == {wrong}


def test_a_scene_without_shape_cannot_be_expected() -> None:
    with pytest.raises(ValueError, match="needs a scene with a shape"):
        expectation(replace(random_scene(random.Random(0)), shape=None), 64, 64)

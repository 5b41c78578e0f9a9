"""Rows: each reason to refuse one, what is noted, and the text that a sample is trained with."""

import numpy as np
import pytest

from helpers.samples import GOOD_ROW
from omnitune.errors import Refused
from omnitune.validation.row import check_row, draw_condition, remove_cliche

pytestmark = pytest.mark.unit


def reason_of(row: dict) -> str:
    with pytest.raises(Refused) as error:
        check_row(row)
    return error.value.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"task_type": "inpaint"}, "unknown_task_type"),
        ({"task_type": None}, "unknown_task_type"),
        ({"task_type": 3}, "wrong_type"),
        ({"instruction": ""}, "empty_instruction"),
        ({"instruction": " \n"}, "empty_instruction"),
        ({"instruction": None}, "empty_instruction"),
        ({"instruction": 42}, "wrong_type"),
        ({"instruction": "\ud800"}, "bad_json"),
        ({"output_image": None}, "no_output_image"),
        ({"output_image": ""}, "no_output_image"),
        ({"output_image": ["a"]}, "wrong_type"),
        ({"input_images": "a.png"}, "wrong_type"),
        ({"input_images": [1]}, "wrong_type"),
        ({"input_images": ["a.png"]}, "unexpected_input_images"),
        ({"task_type": "edit"}, "no_input_images"),
        ({"task_type": "ic", "input_images": []}, "no_input_images"),
        ({"task_type": "in_context", "input_images": ["a"] * 6}, "too_many_input_images"),
    ],
)
def test_rows_are_refused_with_a_reason(change: dict, reason: str) -> None:
    assert reason_of({**GOOD_ROW, **change}) == reason


def test_published_names_and_unknown_keys_are_noted() -> None:
    row = check_row({**GOOD_ROW, "task_type": "text_to_image", "input_images": None, "score": 1})
    assert row.task_type == "t2i"
    assert row.input_images == ()
    assert row.notes == ("unknown key 'score' is ignored", "task_type 'text_to_image' is read as 't2i'")


def test_cliches_leave_captions() -> None:
    assert remove_cliche("The image portrays a cat.") == "a cat."
    assert remove_cliche("这张图片展示了一只猫") == "一只猫"
    assert remove_cliche("A cat. The image shows it.") == "A cat. The image shows it."
    assert remove_cliche("The image shows ") == "The image shows "


def test_conditions_are_drawn_with_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_condition("t2i", "The image shows a cat", rng, 0.3, 0.5) for _ in range(4000)]
    assert np.mean([drop for _, drop, _ in drawn]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([references for _, drop, references in drawn if drop]) == pytest.approx(0.5, abs=0.06)
    assert not any(references for _, drop, references in drawn if not drop)
    assert all((text == "") == drop for text, drop, _ in drawn)
    assert np.mean([text == "a cat" for text, drop, _ in drawn if not drop]) == pytest.approx(0.5, abs=0.04)
    assert {draw_condition("edit", "The image shows x", rng, 0, 1)[0] for _ in range(50)} == {"The image shows x"}


def test_an_instruction_may_stand_under_other_keys() -> None:
    row = {**GOOD_ROW, "instruction_long": "A long one.", "instruction_short": " "}
    assert check_row(row, ["instruction_short", "instruction_long", "instruction"]).instruction == "A long one."
    assert check_row(row, ["instruction_zh", "instruction"]).instruction == GOOD_ROW["instruction"]
    with pytest.raises(Refused, match="instruction_zh is missing"):
        check_row(row, ["instruction_zh"])
    assert check_row(row).notes[0] == "unknown key 'instruction_long' is ignored"

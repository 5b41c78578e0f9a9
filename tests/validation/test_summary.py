"""The summary: tables by topic, and the scripts of captions."""

from pathlib import Path

import pytest

from helpers.samples import rendered, some_rows, write_lines, write_mixture
from omnitune.validation.dataset import RejectedTooMany, validate_mixture
from omnitune.validation.summary import script_of

pytestmark = pytest.mark.unit


def test_summaries_are_printed_by_topic(folder: Path) -> None:
    write_lines(folder / "a.jsonl", *some_rows(10))
    with pytest.raises(RejectedTooMany) as error:
        validate_mixture(write_mixture(folder, "a.jsonl"), folder / "out", progress=False)
    text = rendered(error.value.summary)
    for part in ("4 (40.00%)", "bad_json 2, missing 2", "to 256x256", "not counted", "Latin", "2:3 to 4:5"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a cat", "Latin"),
        ("这张图片 shows", "Latin"),
        ("这张图片展示了一只猫 ok", "Cjk"),
        ("кот", "Cyrillic"),
        ("42!", "none"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script

"""What an evaluation has left is what was written, or the file is named with the command that makes it again."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.projects import sha256, write
from omnitune.evaluation.results import read_generations, read_scores, require_image
from omnitune.io.files import sealed

pytestmark = pytest.mark.unit

KEYS = ("a", "b")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation of two prompts in two parts."""
    folder = tmp_path / "experiments/x/evaluation/10/b1"
    for key in KEYS:
        write(folder / f"images/{key}.png", f"image {key}")
    rows = [{"key": key, "image": f"images/{key}.png", "sha256": sha256(f"image {key}")} for key in KEYS]
    text = "".join(json.dumps(sealed(row)) + "\n" for row in rows)
    write(folder / "generations.jsonl", text)
    scores = {"means": {"loss": 0.5}, "generations_sha256": sha256(text)}
    write(folder / "scores.json", json.dumps(sealed(scores)))
    for name in ("0.jsonl", "1.jsonl", ".0.unfinished.jsonl"):
        write(folder / "parts" / name, "")
    return folder


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def again(folder: Path) -> str:
    return f"Score again: snakemake --cores 2 --force {folder}/scores.json"


def draw_again(folder: Path) -> str:
    return f"Draw it again: snakemake --cores 2 --force {folder}/parts/0.jsonl {folder}/parts/1.jsonl"


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(ValueError) as error:
        call(*arguments)
    return str(error.value)


def test_a_whole_evaluation_is_read(folder: Path) -> None:
    scores = read_scores(folder)
    assert scores["means"] == {"loss": 0.5}
    rows = read_generations(folder, scores)
    assert list(rows) == list(KEYS)
    assert rows["b"]["image"] == "images/b.png"


@pytest.mark.parametrize(("old", "new"), [("0.5", "0.25"), ('"loss"', '"psnr"'), ('"seal": "', '"seal": "0')])
def test_edited_scores_are_named(folder: Path, old: str, new: str) -> None:
    edit(folder / "scores.json", old, new)
    assert message(read_scores, folder) == f"{folder}/scores.json: was changed after it was written. {again(folder)}"


def test_scores_without_a_seal_are_none(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    del scores["seal"]
    write(folder / "scores.json", json.dumps(scores))
    assert "was changed after it was written" in message(read_scores, folder)


def test_scores_in_another_layout_are_the_same(folder: Path) -> None:
    """The seal is over the content: a file that was only formatted anew is whole."""
    before = read_scores(folder)
    write(folder / "scores.json", json.dumps(before, indent=4, sort_keys=True))
    assert read_scores(folder) == before


def test_missing_and_damaged_scores_are_named(folder: Path) -> None:
    write(folder / "scores.json", "{")
    for _ in range(2):
        found = message(read_scores, folder)
        assert found.startswith(f"{folder}/scores.json: cannot be read") and found.endswith(again(folder))
        (folder / "scores.json").unlink(missing_ok=True)


def test_edited_and_missing_generations_are_named(folder: Path) -> None:
    scores, path = read_scores(folder), folder / "generations.jsonl"
    edit(path, "images/b.png", "images/a.png")
    found = message(read_generations, folder, scores)
    assert found == f"{path}: was changed after it was written. {again(folder)}"
    path.unlink()
    assert message(read_generations, folder, scores) == f"{path}: is missing. {again(folder)}"


def test_edited_and_missing_images_are_named(folder: Path) -> None:
    scores, path = read_scores(folder), folder / "images/b.png"
    edit(path, "image b", "image c")
    found = message(read_generations, folder, scores)
    assert found == f"{path}: is not the image that was drawn (its SHA-256 differs). {draw_again(folder)}"
    path.unlink()
    found = message(require_image, path, sha256("image b"))
    assert found == message(read_generations, folder, scores) == f"{path}: is missing. {draw_again(folder)}"

"""The demo data set: deterministic, in many formats, with exactly the broken rows that it announces."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from omnitune.demo.dataset import BROKEN_ROWS, COUNTS, HELDOUT_COUNT, draw_drafts, write_dataset
from omnitune.demo.scenes import render
from omnitune.validation.source import Checks, validate_source

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    write_dataset(folder)
    return folder


def is_sound(row: dict, base: Path) -> bool:
    """What the demo's validation must find out, written down a second time and plainly."""
    if row.get("task_type") not in {"t2i", "edit", "ic"}:
        return False
    if not isinstance(row.get("instruction"), str) or not row["instruction"] or "output_image" not in row:
        return False
    if len(row["input_images"]) not in ({0} if row["task_type"] == "t2i" else range(1, 6)):
        return False
    for name in [*row["input_images"], row["output_image"]]:
        try:
            with Image.open(base / name) as image:
                image.load()
                if getattr(image, "n_frames", 1) > 1:
                    return False
        except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return False
    return True


def test_two_writes_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again")
    assert hashes(root) == hashes(tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_counts_and_broken_rows(root: Path) -> None:
    broken = 0
    for task, count in COUNTS.items():
        sound = 0
        for line in (root / f"{task}.jsonl").read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                broken += 1
                continue
            if line.count('"instruction"') < 2 and is_sound(row, root):
                sound += 1
            else:
                broken += 1
        assert sound == count, task
    assert broken == BROKEN_ROWS == 17


def test_validation_finds_each_broken_row_and_its_reason(root: Path, tmp_path: Path) -> None:
    reasons: Counter[str] = Counter()
    for task, count in COUNTS.items():
        summary = validate_source(task, [root / f"{task}.jsonl"], tmp_path / task, Checks(), progress=False)
        reasons.update(summary["reasons"])
        assert summary["accepted"] == count
    assert reasons == {
        "missing": 2, "truncated": 2, "not_an_image": 1, "empty_instruction": 1, "no_output_image": 1, "animated": 1,
        "bad_json": 1, "duplicate_key": 1, "unknown_task_type": 1, "no_input_images": 1, "wrong_type": 1, "empty_file": 1,
        "is_a_folder": 1, "too_many_pixels": 1, "too_many_input_images": 1,
    }  # fmt: skip
    assert reasons.total() == BROKEN_ROWS


def test_heldout_rows_are_sound_and_keyed(root: Path) -> None:
    keys = []
    for task in COUNTS:
        rows = read(root / "heldout" / f"{task}.jsonl")
        assert len(rows) == HELDOUT_COUNT
        assert all(is_sound(row, root / "heldout") for row in rows)
        keys += [row["key"] for row in rows]
        for row in rows:
            size = ImageOps.exif_transpose(Image.open(root / "heldout" / row["output_image"])).size
            assert size == (row["expect"]["width"], row["expect"]["height"])
    assert len(set(keys)) == len(keys)


def test_heldout_is_not_in_training() -> None:
    for task in COUNTS:
        training, heldout = draw_drafts(task, 0)
        assert not {draft.identity for draft in training} & {draft.identity for draft in heldout}


def test_every_format_is_there_and_sizes_stay_in_range(root: Path) -> None:
    seen: Counter[str] = Counter()
    squares = 0
    paths = [path for task in COUNTS for path in sorted((root / "images" / task).iterdir())]
    for path in paths:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) != 1
            seen[f"{image.format} {image.mode}{' turned' if turned else ''}"] += 1
            assert min(image.size) >= 64 and max(image.size) <= 160
            squares += image.width == image.height
    assert set(seen) == {
        "JPEG RGB", "JPEG RGB turned", "JPEG L", "PNG RGB", "PNG RGBA", "PNG L", "WEBP RGB",
    }  # fmt: skip
    assert min(seen.values()) >= 20
    assert 0.6 < squares / len(paths) < 0.8


def test_input_and_output_of_an_edit_are_of_one_size(root: Path) -> None:
    for task in ("edit", "in_context", "background"):
        for row in read(root / "heldout" / f"{task}.jsonl"):
            images = [Image.open(root / "heldout" / name) for name in [*row["input_images"], row["output_image"]]]
            assert len({ImageOps.exif_transpose(image).size for image in images}) == 1


def test_stored_files_show_the_scene_that_was_drawn(root: Path) -> None:
    """Upright after EXIF, over white after alpha, grey after RGB: within JPEG's error of the rendered scene."""
    kinds = set()
    for task in ("t2i", "edit"):
        _, heldout = draw_drafts(task, 0)
        for draft, row in zip(heldout, read(root / "heldout" / f"{task}.jsonl"), strict=True):
            image = Image.open(root / "heldout" / row["output_image"])
            kinds.add((image.mode, image.getexif().get(0x0112, 1)))
            image = ImageOps.exif_transpose(image)
            if image.mode == "RGBA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            drawn = render(draft.output, *draft.size)
            assert np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(drawn, float)).mean() < 3, row
    assert {("RGB", 6), ("RGBA", 1), ("L", 1)} <= kinds


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="which is not of the demo data set"):
        write_dataset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_mixtures_name_the_files_that_are_written(root: Path) -> None:
    pending = [ROOT / "config/data/demo.yml", ROOT / "config/data/demo_lora.yml"]
    named = set()
    while pending:
        for entry in yaml.safe_load(pending.pop().read_text())["data"]:
            if entry["path"].endswith(".yml"):
                pending.append(ROOT / entry["path"])
            else:
                named.add(entry["path"])
    assert named == {f"resources/demo/{path.name}" for path in root.glob("*.jsonl")}

"""The demo data set: deterministic, in many formats, with exactly the broken rows that it announces."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageOps

from omnitune.demo.dataset import BASE_TASKS, BROKEN_ROWS, COUNTS, HELDOUT_COUNT, KNOWN_ROWS, draw_drafts, write_dataset
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
        "bad_json": 1, "duplicate_key": 1, "unknown_task_type": 1, "no_input_images": 1, "wrong_type": 1,
        "empty_file": 1, "is_a_folder": 1, "too_many_pixels": 1, "too_many_input_images": 1,
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


def test_what_the_base_knows_is_one_source_with_all_that_is_broken(root: Path) -> None:
    for folder, count in ((root, KNOWN_ROWS), (root / "heldout", HELDOUT_COUNT // len(BASE_TASKS))):
        tasks = [(folder / f"{task}.jsonl").read_text().splitlines()[:count] for task in BASE_TASKS]
        assert (folder / "known.jsonl").read_text().splitlines() == [line for own in tasks for line in own]
        assert all(len(own) == count for own in tasks)
    last = [(root / f"{task}.jsonl").read_text().splitlines()[KNOWN_ROWS:] for task in BASE_TASKS]
    assert all(is_sound(json.loads(line), root) for own in last for line in own), "no broken row is left out"


def test_mixtures_and_benchmarks_name_files_that_are_written(root: Path) -> None:
    entries = [
        entry["path"]
        for name in ("demo", "demo_lora")
        for entry in yaml.safe_load((ROOT / f"config/data/{name}.yml").read_text())["data"]
    ]
    prompts = [yaml.safe_load(path.read_text())["prompts"] for path in (ROOT / "config/benchmarks").glob("demo_*.yml")]
    assert {"known.jsonl", "star.jsonl", "background.jsonl"} == {Path(path).name for path in entries}
    assert all((root / Path(path).relative_to("resources/demo")).is_file() for path in [*entries, *prompts])


def test_documents_and_options_name_checkpoints_that_the_demo_saves() -> None:
    saved = set()
    for path in (ROOT / "config/options").glob("demo*.yml"):
        options = yaml.safe_load(path.read_text())
        saved.add(f"experiments/{options['name']}/checkpoint-{options['train']['max_train_steps']}")
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "config/options").glob("*.yml")]
    named = {found for path in texts for found in re.findall(r"experiments/demo\w*/checkpoint-\d+", path.read_text())}
    assert named and named <= saved

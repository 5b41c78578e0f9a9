"""What benchmarks of others bring into a report: several images of a prompt, categories, and images that failed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.projects import sha256
from helpers.runs import save_json, write_evaluation, write_options, write_prepared, write_prompts, write_training
from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.io.files import json_line, sealed
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.build import BenchmarkEntry, build_report
from omnitune.report.collect import Evaluation
from omnitune.report.examples import choose_examples
from omnitune.report.remarks import remarks
from omnitune.report.scores import score_lines, tasks_of, values_of
from omnitune.report.verdict import forgetting

pytestmark = pytest.mark.unit

LAST = EvaluatedStep(50)
PROMPTS = [
    Prompt(f"{line}-{draw}", "edit", "x", category=category, line_key=line, draw=draw)
    for line, category in (("a", "colour"), ("b", "hats"))
    for draw in range(2)
]


def evaluated(*psnr: list[float | None]) -> Evaluation:
    """Of the base and step 50; None is an image that failed."""
    scores = {}
    for step, values in zip((BASE, LAST), psnr, strict=True):
        rows = [
            {"key": prompt.key, **({"failed": "why"} if value is None else {"psnr": value})}
            for prompt, value in zip(PROMPTS, values, strict=True)
        ]
        scores[step] = {"per_prompt": rows}
    return Evaluation(BenchmarkEntry("b", Benchmark(prompts="p", images_per_prompt=2), PROMPTS), {}, scores, {})


def test_images_of_a_prompt_are_one_value_and_those_that_failed_none() -> None:
    found = evaluated([1, 3, 5, 7], [2, None, None, None])
    values, measured = values_of(found, [BASE, LAST], "psnr")
    np.testing.assert_equal(values, [[2, 6], [2, np.nan]])
    assert measured.tolist() == [True, True]
    assert tasks_of(found) == ["colour", "hats"]
    np.testing.assert_equal(values_of(found, [BASE], "psnr", "hats")[0], [[6]])


def test_a_prompt_that_fails_in_all_rows_is_missing_in_the_tables_too() -> None:
    found = evaluated([1, 3, None, None], [2, 4, None, None])
    assert {(line.against_base.n, line.against_base.missing) for line in score_lines(found) if line.task == "all"} == {
        (1, 1)
    }
    assert not values_of(found, [BASE, LAST], "ssim")[1].any(), "of a measure that none has, none is missing"


def test_the_report_says_what_the_official_images_lack() -> None:
    found = evaluated([1, 3, None, 4], [2, 4, 5, 6])
    images = {prompt.key: {"image": None if prompt.key == "b-0" else "x.png", "sha256": None} for prompt in PROMPTS}
    whole = {key: {"image": "x.png", "sha256": None} for key in images}
    exported = found.entry.benchmark.model_copy(update={"export": "official", "format": "dpg"})
    for benchmark, wanted in ((exported, ["base: 1 of 2 prompts lack some that failed"]), (found.entry.benchmark, [])):
        shown = replace(
            found,
            entry=replace(found.entry, benchmark=benchmark),
            generations={BASE: images, LAST: whole},
            folders={BASE: Path(), LAST: Path()},
        )
        assert [text for text in remarks(shown) if "official" in text] == [
            f"Images for the official scorer, {text}. Where it takes those of a prompt as one, the prompt is left out."
            for text in wanted
        ]


def test_a_category_is_trained_where_its_task_is() -> None:
    found = evaluated([1, 3, 5, 7], [2, 4, 6, 8])
    lines = score_lines(found)
    assert forgetting([found], lines, {"edit": 3}) == []
    assert {line.task for line in forgetting([found], lines, {"t2i": 3})} == {"colour", "hats"}


def test_the_report_says_which_images_are_missing(tmp_path: Path) -> None:
    experiment = tmp_path / "experiments/demo"
    write_options(experiment)
    write_training(experiment)
    write_prepared(tmp_path / "prepared/demo")
    prompts = [replace(prompt, category="hats") for prompt in write_prompts(tmp_path / "p", 4)]
    entry = BenchmarkEntry("scenes", Benchmark(prompts="p.jsonl"), prompts)
    for step in (0, 120):
        write_evaluation(experiment, entry, step, 1.0, checked=False)
    folder = experiment / "evaluation/120/scenes"
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    rows[1] |= {"image": None, "sha256": None, "size": None, "failed": "its numbers are not finite"}
    text = "".join(map(json_line, rows))
    (folder / "generations.jsonl").write_text(text)
    scores = json.loads((folder / "scores.json").read_text())
    scores["per_prompt"][1] = {"key": prompts[1].key, "task_type": "edit", "failed": "its numbers are not finite"}
    save_json(folder / "scores.json", sealed({**scores, "generations_sha256": sha256(text)}))
    output = tmp_path / "report/index.html"
    build_report(experiment, tmp_path / "prepared/demo", [entry], output)
    page = output.read_text()
    assert "step 120: 1 of 4 images are missing, as drawing them failed. No figure counts them." in page
    assert "step 120: missing" in page
    assert "hats" in page
    images = (output.parent / "generations.csv").read_text()
    assert f"scenes,step 120,{prompts[1].key},hats," in images


def test_the_first_images_of_all_prompts_are_shown_before_further_ones() -> None:
    prompts = [
        Prompt(f"{line:02d}-{draw}", "t2i", "x", line_key=f"{line:02d}", draw=draw)
        for line in range(10)
        for draw in range(4)
    ]
    shown, rest = choose_examples(prompts)
    assert {prompt.line_key for prompt in shown} == {f"{line:02d}" for line in range(10)}
    assert [prompt.key for prompt in shown if prompt.draw] == ["00-1", "01-1"] and len(rest) == 28

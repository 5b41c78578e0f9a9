"""The comparison of experiments: what it says, and which it finds best."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from helpers.runs import (
    WEIGHTS,
    save_json,
    write_evaluation,
    write_options,
    write_prepared,
    write_prompts,
    write_training,
)
from omnitune.config import Benchmark
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.build import BenchmarkEntry
from omnitune.report.collect import collect
from omnitune.report.comparison import Compared, build_comparison

pytestmark = [pytest.mark.unit, pytest.mark.slow]

QUALITIES = {"mine-learning_rate-1e-05": 0.5, "mine-learning_rate-0.0001": 0.9, "mine-learning_rate-0.001": 0.05}


def test_variants_stand_side_by_side(tmp_path: Path) -> None:
    entry = BenchmarkEntry(
        "scenes",
        Benchmark(prompts="p.jsonl", check="demo_scene", baselines={"other": "m"}),
        write_prompts(tmp_path / "p", 16),
    )
    write_prepared(tmp_path / "prepared")
    variants, other = [], EvaluatedStep(0, baseline="other")
    for name, quality in QUALITIES.items():
        experiment = tmp_path / "experiments" / name
        write_options(experiment)
        options = experiment / "options.yml"
        options.write_text(options.read_text().replace("name: demo", f"name: {name}"))
        write_training(experiment)
        write_evaluation(experiment, entry, 120, quality)
        if not variants:
            write_evaluation(experiment, entry, 0, 0.1)
            write_evaluation(
                experiment, entry, str(other), 0.3, weights={**WEIGHTS, "transformer": "m", "sha256": "cd" * 32}
            )
            base, baseline = (experiment / "evaluation" / str(step) for step in (BASE, other))
        folders = {BASE: base, other: baseline, EvaluatedStep(120): experiment / "evaluation/120"}
        rate = float(name.partition("rate-")[2])
        run = collect(experiment, tmp_path / "prepared", [entry], folders)
        variants.append(Compared({"train.learning_rate": rate}, run, by_values=True))
    moved = replace(entry, benchmark=entry.benchmark.model_copy(update={"baselines": {"other": "n"}}))
    with pytest.raises(ValueError, match=r"was evaluated with another folder than baselines\.other names now"):
        collect(experiment, tmp_path / "prepared", [moved], folders)
    page, table = tmp_path / "c/index.html", tmp_path / "c/scores.csv"
    build_comparison("mine", variants, page, table)
    text = page.read_text(encoding="utf-8")
    assert "<h1>mine</h1>" in text and str(tmp_path) not in text
    for name in QUALITIES:
        assert f'href="../../experiments/{name}/report/index.html"' in text
    best = text.count(", best</b>")
    row = next(line for line in text.splitlines() if "learning_rate-0.0001</th>" in line)
    assert row.count(", best</b>") == best >= 3, "the best of all in each measure"
    worst = next(line for line in text.splitlines() if "learning_rate-0.001</th>" in line)
    assert 'class="number worse"' in worst and "93.8 %, best" in row
    assert text.count("<b>base</b>") == 12 and text.count("<b>0.0001</b>") == 12, "images of as many prompts"
    assert text.count("<b>other</b>") == 12 and '<th scope="row">other</th>' in text, "a baseline, once"
    assert "+43.8 points [+18.8, +68.8], better</td>" in row, "against the first"
    assert text.count('class="plot"') == 1 and ">1e-05</text>" in text, "curves over each other"
    assert text.count("<script") == 1, "our own"
    scores = pd.read_csv(table)
    assert list(scores["experiment"]) == [*QUALITIES, "base", "other"]
    assert list(scores["check_passed"])[:4] == [0.5, 0.9375, 0.0625, 0.125] and 0.125 < scores["check_passed"][4] < 0.5
    before = page.read_bytes()
    build_comparison("mine", variants, page, table)
    assert page.read_bytes() == before


def test_without_a_benchmark_it_compares_trainings(tmp_path: Path) -> None:
    experiment = tmp_path / "experiments/demo"
    write_options(experiment)
    write_training(experiment)
    save_json(tmp_path / "prepared/validation/summary.json", {})
    run = collect(experiment, tmp_path / "prepared", [], {BASE: experiment / "evaluation/0"})
    build_comparison("demo", [Compared({"seed": 1}, run)], tmp_path / "index.html", tmp_path / "scores.csv")
    assert "No benchmark is configured" in (tmp_path / "index.html").read_text()
    assert pd.read_csv(tmp_path / "scores.csv").loc[0, "steps"] == 120

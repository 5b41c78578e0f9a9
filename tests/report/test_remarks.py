"""What the page says beside a benchmark's table: of absent models, of judges, and of people's votes."""

from pathlib import Path
from typing import Any

import pytest

from omnitune.config import Benchmark
from omnitune.evaluation.votes.votes import Side, Vote
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import BenchmarkEntry, Evaluation
from omnitune.report.remarks import remarks

pytestmark = pytest.mark.unit

LAST = EvaluatedStep(20)
HASHES = {BASE: "0" * 64, LAST: "1" * 64, "other": "2" * 64, "gone": "3" * 64}


def evaluation(votes: list[Vote] | None = None, **scores: Any) -> Evaluation:
    """Two rows of one prompt; `scores` are those of the last."""
    rows = {step: {"k": {"key": "k", "sha256": HASHES[step]}} for step in (BASE, LAST)}
    entry = BenchmarkEntry("bench", Benchmark(prompts="p.jsonl"), [])
    return Evaluation(entry, dict.fromkeys(rows, Path()), {BASE: {}, LAST: scores}, rows, votes or [])


def vote(left: Any, right: Any, choice: Any) -> Vote:
    sides = [Side(experiment="other", step="7", sha256=HASHES[name]) for name in (left, right)]
    return Vote(time="t", key="k", left=sides[0], right=sides[1], choice=choice)


def test_a_measure_without_its_model_is_named() -> None:
    assert remarks(evaluation(not_measured={"clip": "model: x: is no folder"})) == [
        "Not measured: CLIP (model: x: is no folder)."
    ]
    assert remarks(evaluation()) == [], "scores of before that say nothing of it"


def test_what_is_missing_of_a_judge_its_spread_and_agreement() -> None:
    facts = {
        "model": "m",
        "asked": 6,
        "missing": {"refused": 1, "status 429": 2},
        "spread": {"instruction": 0.5, "quality": None},
        "agreement": {
            "instruction": {"n": 4, "kendall": 0.8, "pairs": 5, "accuracy": 0.9},
            "quality": {"n": 0, "kendall": None, "pairs": 0, "accuracy": None},
        },
    }
    assert remarks(evaluation(judges={"j": facts})) == [
        "Judge j (m), step 20: 3 of 6 answers missing (1 x refused, 2 x status 429); deviation of repeated answers: "
        "instruction 0.50; instruction against people: 90 % of 5 pairs of 4 images in one order, Kendall's tau 0.80; "
        "quality: no labels of people to compare with."
    ]
    plain = {**facts, "missing": {}, "spread": {"instruction": None, "quality": None}, "agreement": None}
    assert remarks(evaluation(judges={"j": plain})) == ["Judge j (m), step 20: 0 of 6 answers missing."]


def test_votes_count_for_the_images_that_are_there() -> None:
    votes = [
        vote(BASE, LAST, "right"),
        vote(LAST, BASE, "left"),
        vote(LAST, BASE, "tie"),
        vote("gone", "other", "left"),
    ]
    assert remarks(evaluation([*votes, vote("other", LAST, "left")])) == [
        "People preferred step 20 to base in 2 of 2 decided votes (100 %, 95 % interval 34 to 100 %), 1 tie.",
        "People preferred step 20 to step 7 of other in 0 of 1 decided votes (0 %, 95 % interval 0 to 79 %), 0 ties.",
    ]


def test_figures_of_a_set_have_neither_interval_nor_verdict() -> None:
    sets = {"kid": {"value": 1.5, "n": 120, "model": "m"}, "fid": {"value": 7.0, "n": 120, "model": "m"}}
    one = evaluation(sets=sets)
    one.scores[BASE]["sets"] = {"fid": {"value": 9.25, "n": 118, "model": "m"}}
    end = "lower is better. Of all images together: no interval, and no verdict."
    assert remarks(one) == [
        f"FID to the targets by m: base 9.25 (118 images), step 20 7.00 (120 images); {end}",
        f"KID x 1000 to the targets by m: step 20 1.50 (120 images); {end}",
    ]

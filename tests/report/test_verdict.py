"""What a report answers: the verdict's words, the best checkpoint, what was forgotten, what to take."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import BenchmarkEntry, Evaluation
from omnitune.report.commands import commands
from omnitune.report.remarks import remarks
from omnitune.report.scores import primary_of, score_lines
from omnitune.report.verdict import answer, best_of, forgetting, step_to_take, verdict

pytestmark = pytest.mark.unit

NOISE, OTHER = np.random.default_rng(0).normal(size=(2, 60))


def evaluated(rows: dict[int | str, Any], measure: str = "psnr", name: str = "scenes", **benchmark: Any) -> Evaluation:
    """Of 60 prompts, half of them edits; values by step."""
    tasks = ["edit", "t2i"] * 30
    prompts = [Prompt(f"p{number:02d}", task, "x", target=Path("t.png")) for number, task in enumerate(tasks)]
    scores = {
        EvaluatedStep(0, baseline=step) if isinstance(step, str) else EvaluatedStep(step): {
            "per_prompt": [
                {"key": prompt.key, "task_type": prompt.task_type, measure: value, "ssim": 0.5}
                for prompt, value in zip(prompts, np.broadcast_to(values, 60).tolist(), strict=True)
            ]
        }
        for step, values in rows.items()
    }
    return Evaluation(BenchmarkEntry(name, Benchmark(prompts="p.jsonl", **benchmark), prompts), {}, scores, {})


def test_noise_is_no_difference_and_says_what_would_be_one() -> None:
    found = evaluated({0: 20 + NOISE, 50: 19.95 + NOISE + OTHER})
    said = verdict(found, score_lines(found))
    assert said["word"] == "no difference shown"
    assert "prompts would show half of it." in said["text"] and "[-" in said["text"] and ", +" in said["text"]


def test_the_verdict_is_about_the_primary_measure_alone() -> None:
    rows = {0: 0.03 + 0 * NOISE, 50: (NOISE < 3) * 1.0}
    found = evaluated(rows, "check_passed", check="demo_scene")
    assert primary_of(found) == "check_passed"
    assert verdict(found, score_lines(found))["word"] == "better"
    assert answer([found], score_lines(found)).startswith(
        "Better on scenes (picture right 3.0 % → 100.0 %, +97.0 points ["
    )
    other = evaluated(rows, "check_passed", check="demo_scene", primary="ssim")
    assert verdict(other, score_lines(other))["word"] == "no difference shown"
    lacking = evaluated(rows, "check_passed", primary="psnr")
    assert "PSNR (dB), the primary measure, was measured on no prompt" in verdict(lacking, score_lines(lacking))["text"]


@pytest.mark.parametrize(
    ("last", "best", "word"),
    [(22, 100, None), (20.9, 50, "worse"), (None, 50, "no difference shown")],
)
def test_the_best_checkpoint_and_whether_the_last_is_worse(last: float | None, best: int, word: str | None) -> None:
    ends = 21 + NOISE + (0.5 * (OTHER - OTHER.mean()) - 0.02) if last is None else last + NOISE
    found = evaluated({0: 20 + NOISE, 50: 21 + NOISE, 100: ends})
    chosen = best_of(found)
    assert chosen is not None and chosen.step == EvaluatedStep(best)
    assert (chosen.last.verdict if chosen.last else None) == word
    assert step_to_take([found]) == EvaluatedStep(50 if word == "worse" else 100), "the last, unless it is shown worse"


def test_of_many_checkpoints_a_lucky_one_is_not_taken() -> None:
    """What would do for one comparison does not for the best of twelve, and the sentence says so."""
    last, lead = 20 + NOISE, 0.3 + OTHER - OTHER.mean()
    few = evaluated({0: 19 + NOISE, 50: last + lead, 600: last})
    assert step_to_take([few]) == EvaluatedStep(50)
    others: dict[int | str, Any] = {50 * step: last - 0.1 for step in range(2, 12)}
    many = evaluated({0: 19 + NOISE, 50: last + lead, **others, 600: last})
    assert step_to_take([many]) == EvaluatedStep(600)
    text = verdict(many, score_lines(many))["text"]
    assert "The best of 12 is step 50; the last is not shown to be worse" in text
    assert text.endswith("; the interval allows for a choice among 12).")


def test_a_checkpoint_that_is_worse_elsewhere_is_not_taken() -> None:
    one = evaluated({0: 20 + NOISE, 50: 22 + NOISE, 100: 21 + NOISE})
    two = evaluated({0: 20 + NOISE, 50: 19 + NOISE, 100: 21 + NOISE}, name="other")
    assert step_to_take([one]) == EvaluatedStep(50)
    assert step_to_take([one, two]) == EvaluatedStep(100)


def test_the_command_draws_as_the_row_was_drawn() -> None:
    found = evaluated(
        {0: 20 + NOISE, 50: 21 + NOISE}, image_guidance_scale=1.5, scheduler="dpmsolver++", negative_prompt=""
    )
    step = EvaluatedStep(50, lora_scale=0.5)
    weights = {"base": "my models/base", "transformer": None, "lora": "a/transformer_lora", "lora_scale": 0.5}
    found.scores[step] = {**found.scores[EvaluatedStep(50)], "weights": weights}
    [line] = commands([found], step)
    given = dict(zip(*[iter(shlex.split(line)[2:])] * 2, strict=True))
    assert given["--model_path"] == "my models/base" and "--transformer_path" not in given
    assert given["--transformer_lora_path"] == "a/transformer_lora" and given["--transformer_lora_scale"] == "0.5"
    assert given["--image_guidance_scale"] == "1.5" and given["--scheduler"] == "dpmsolver++"
    assert given["--negative_prompt"] == "" and given["--cfg_range_end"] == "1.0"


def test_tasks_that_were_not_trained_stand_apart() -> None:
    found = evaluated({0: 20 + NOISE, 50: 19 + NOISE, 100: 18 + NOISE})
    lines = score_lines(found)
    forgotten = forgetting([found], lines, {"t2i": 700, "edit": 0})
    assert [(line.task, line.step.number, line.against_base.verdict) for line in forgotten] == [
        ("edit", 50, "worse"),
        ("edit", 100, "worse"),
    ]
    assert forgetting([found], lines, {"t2i": 1, "edit": 1}) == forgetting([found], lines, {}) == []


def test_a_measure_that_failed_is_counted_and_no_score() -> None:
    values = (20 + NOISE).tolist()
    found = evaluated({0: values, 50: 21 + NOISE})
    for row in found.scores[BASE]["per_prompt"][:3]:
        row["psnr"] = None
    [line] = [x for x in score_lines(found) if (x.task, x.measure, x.row) == ("all", "psnr", "step 50")]
    assert (line.against_base.n, line.against_base.missing) == (57, 3)
    assert "on 57 prompts (3 more missing)" in verdict(found, [line])["text"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"primary": "check_passed"}, "is a figure of a check; set check"),
        ({"primary": "loss", "loss_timesteps": 0}, "raise that, or take another"),
        ({"primary": "beauty"}, "primary"),
    ],
)
def test_a_primary_that_cannot_be_measured_is_refused(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Benchmark(prompts="p.jsonl", **content)


def test_baselines_are_rows_and_no_checkpoints() -> None:
    rows: dict[int | str, Any] = {0: 20 + NOISE, "other": 30 + NOISE, 50: 25 + NOISE + 0.1 * OTHER}
    found = evaluated(rows, baselines={"other": "models/other"})
    assert [step.label for step in found.steps] == ["base", "other", "step 50"] and found.last == EvaluatedStep(50)
    best = best_of(found)
    assert best is not None and best.step == EvaluatedStep(50), "what others have trained is none to take"
    assert step_to_take([found]) == EvaluatedStep(50)
    verdicts = {line.row: line.against_base.verdict for line in score_lines(found) if line.measure == "psnr"}
    assert verdicts == {"base": "no difference shown", "other": "better", "step 50": "better"}
    found.generations.update({step: {} for step in found.steps})
    [said] = [text for text in remarks(found) if "other" in text]
    assert said.startswith("Step 50 against other: PSNR (dB) 30.") and said.endswith("on 60 prompts: worse.")

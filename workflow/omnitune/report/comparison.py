"""Compare experiments: one HTML file over all of them, and a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from markupsafe import Markup

from omnitune.config.choices import MEASURES
from omnitune.evaluation.prompts import Prompt
from omnitune.evaluation.statistics import Comparison, compare
from omnitune.io.files import lock_folder, write_text
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.build import page_environment
from omnitune.report.collect import Evaluation, Run
from omnitune.report.examples import choose_examples
from omnitune.report.images import Thumbnails
from omnitune.report.plots import compared_plots
from omnitune.report.scores import (
    ALL,
    measures_of,
    primary_of,
    score_lines,
    show,
    show_change,
    show_interval,
    values_of,
)

LAST_PART = 0.1  # of the steps, whose mean is shown as a training's loss
KEY_COLUMNS = 3  # more keys than these have a table of their own


@dataclass(frozen=True)
class Compared:
    """An experiment and what its run has left.

    Attributes:
        keys: in which the experiments differ, with the values.
        run: from `omnitune.report.collect.collect`, with the same benchmarks for all.
        by_values: whether its values name it, as those of a sweep's variant do.
    """

    keys: Mapping[str, Any]
    run: Run
    by_values: bool = False

    @property
    def values(self) -> list[str]:
        """Of its keys, as text."""
        return [value if isinstance(value, str) else json.dumps(value) for value in self.keys.values()]

    @property
    def label(self) -> str:
        """What it is called beside the others."""
        return ", ".join(self.values) if self.by_values else self.run.name


def build_comparison(name: str, compared: Sequence[Compared], page: Path, table: Path) -> None:
    """Writes the comparison as one self-contained HTML file, and its figures as a table; equal inputs give equal bytes.

    Args:
        name: of the comparison.
        compared: at least one.
        page, table: the .html and the .csv file.
    """
    evaluations = [list(group) for group in zip(*(one.run.evaluations for one in compared), strict=True)]
    shown = sum(
        2 * len(compared) + len(_baselines(compared, group)) + 1 + len(prompt.input_images)
        for group in evaluations
        for prompt in choose_examples(group[0].entry.prompts)[0]
    )
    thumbnails = Thumbnails(page.parent, shown)
    keys = list(compared[0].keys)
    context = {
        "name": name,
        "keys": keys if len(keys) <= KEY_COLUMNS else [],
        "options": [(key, [one.values[number] for one in compared]) for number, key in enumerate(keys)],
        "compared": [
            {"name": one.run.name, "label": one.label, "values": one.values, **_training(one.run)} for one in compared
        ],
        "plots": [
            {**plot, "svg": Markup(plot["svg"])}
            for plot in compared_plots({one.label: one.run.metrics for one in compared})
        ],
        "benchmarks": [_benchmark(compared, group, thumbnails) for group in evaluations],
    }
    text = page_environment().get_template("comparison.html.j2").render(**context)
    with lock_folder(page.parent):
        write_text(table, _table(compared).to_csv(index=False))
        write_text(page, text)


def _training(run: Run) -> dict[str, Any]:
    """Steps, the mean loss of the last ones, and the last held-out loss; None where there is none."""
    losses = [row["loss"] for row in run.metrics if row.get("loss") is not None]
    heldout = [row["val_loss"] for row in run.metrics if row.get("val_loss") is not None]
    return {
        "steps": run.train.get("final_step"),
        "loss": fmean(losses[-math.ceil(len(losses) * LAST_PART) :]) if losses else None,
        "heldout": heldout[-1] if heldout else None,
    }


def _benchmark(
    compared: Sequence[Compared], evaluations: Sequence[Evaluation], thumbnails: Thumbnails
) -> dict[str, Any]:
    """Of one benchmark, the measures of each base and of each experiment's last step, and some of the images."""
    primary = primary_of(evaluations[0])
    measures = sorted(measures_of(evaluations[0]), key=lambda name: name != primary)
    found = [_lines(evaluation, evaluation.last) for evaluation in evaluations]
    best = {name: _best(name, [lines[name].mean for lines in found if name in lines]) for name in measures}
    rows = [
        {
            "label": one.label,
            "name": one.run.name,
            "values": one.values,
            "cells": [_cell(name, lines.get(name), best[name]) for name in measures],
            "first": _against_first(evaluations, number, primary),
        }
        for number, (one, lines) in enumerate(zip(compared, found, strict=True))
    ]
    return {
        "name": evaluations[0].entry.name,
        "labels": [(MEASURES[name].label, MEASURES[name].higher_is_better) for name in measures],
        "primary": MEASURES[primary].label if primary else None,
        "first": compared[0].label,
        "others": [
            {"label": label, "cells": [show(name, means[name]) if name in means else "none" for name in measures]}
            for label, means in _others(compared, evaluations)
        ],
        "rows": rows,
        "examples": [
            _example(compared, evaluations, prompt, thumbnails)
            for prompt in choose_examples(evaluations[0].entry.prompts)[0]
        ],
    }


def _bases(compared: Sequence[Compared], evaluations: Sequence[Evaluation]) -> dict[int, str]:
    """Which experiments' bases to show, each weights once, with their names."""
    weights = [evaluation.scores[BASE]["weights"]["sha256"] for evaluation in evaluations]
    shown = [number for number, sha256 in enumerate(weights) if sha256 not in weights[:number]]
    return {number: "base" if len(shown) == 1 else f"base of {compared[number].label}" for number in shown}


def _baselines(
    compared: Sequence[Compared], evaluations: Sequence[Evaluation]
) -> list[tuple[str, Evaluation, EvaluatedStep]]:
    """Which baselines to show, each weights once, with their names: a transformer alone has each base's other parts."""
    found: dict[EvaluatedStep, dict[tuple[str | None, ...], int]] = {}
    for number, evaluation in enumerate(evaluations):
        for step in evaluation.baselines:
            weights = evaluation.scores[step]["weights"]
            found.setdefault(step, {}).setdefault((weights["sha256"], weights.get("pipeline_sha256")), number)
    return [
        (step.label if len(numbers) == 1 else f"{step.label} of {compared[number].label}", evaluations[number], step)
        for step, numbers in found.items()
        for number in numbers.values()
    ]


def _others(compared: Sequence[Compared], evaluations: Sequence[Evaluation]) -> list[tuple[str, dict[str, float]]]:
    """Bases and baselines, each weights once, with their means by measure."""
    bases = [
        (label, {name: line.base_mean for name, line in _lines(evaluations[number], evaluations[number].last).items()})
        for number, label in _bases(compared, evaluations).items()
    ]
    baselines = [
        (label, {name: line.mean for name, line in _lines(evaluation, step).items()})
        for label, evaluation, step in _baselines(compared, evaluations)
    ]
    return bases + baselines


def _lines(evaluation: Evaluation, step: EvaluatedStep) -> dict[str, Comparison]:
    """A step against the base, by measure."""
    lines = [line for line in score_lines(evaluation) if line.task == ALL and line.step == step]
    return {line.measure: line.against_base for line in lines}


def _against_first(evaluations: Sequence[Evaluation], number: int, measure: str | None) -> dict[str, str]:
    """The primary measure of an experiment against that of the first one, prompt by prompt."""
    if number == 0 or measure is None:
        return {"text": "", "word": ""}
    pair = [values_of(evaluations[index], [evaluations[index].last], measure) for index in (number, 0)]
    (values, asked), (first, asked_first) = pair
    [found] = compare(values, first[0], asked | asked_first, MEASURES[measure].higher_is_better)
    interval = show_interval(measure, found.interval, sign=True)
    return {"text": f"{show_change(measure, found.difference)} {interval}".strip(), "word": found.verdict}


def _cell(measure: str, found: Comparison | None, best: float | None) -> dict[str, Any]:
    if found is None:
        return {"text": "none", "interval": "", "word": "", "best": False}
    return {
        "text": show(measure, found.mean),
        "interval": show_interval(measure, found.mean_interval),
        "word": found.verdict.replace(" ", "-"),
        "best": found.mean == best,
    }


def _best(measure: str, values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    choose = max if MEASURES[measure].higher_is_better else min
    return choose(finite) if finite else None


def _example(
    compared: Sequence[Compared], evaluations: Sequence[Evaluation], prompt: Prompt, thumbnails: Thumbnails
) -> dict[str, Any]:
    """Images of a prompt side by side: inputs, each base's, each experiment's, and the target."""
    shots: list[tuple[Path | None, str, str]] = [(path, "input", "input") for path in prompt.input_images]
    for number, label in _bases(compared, evaluations).items():
        shots.append((evaluations[number].image(BASE, prompt.key), label, "row"))
    for label, evaluation, step in _baselines(compared, evaluations):
        shots.append((evaluation.image(step, prompt.key), label, "row"))
    for one, evaluation in zip(compared, evaluations, strict=True):
        shots.append((evaluation.image(evaluation.last, prompt.key), one.label, "row"))
    shots += [(prompt.target, "target", "target")] if prompt.target else []
    images = [
        {**thumbnails.entry(path, caption, f"{caption}: {prompt.key}"), "kind": kind, "result": None}
        for path, caption, kind in shots
    ]
    seed = evaluations[0].generations[BASE][prompt.key].get("seed")
    known = {"key": prompt.key, "task": prompt.task, "instruction": prompt.instruction, "seed": seed}
    return {**known, "changes": {}, "images": images}


def _table(compared: Sequence[Compared]) -> pd.DataFrame:
    """A row for each experiment and benchmark, and one for each base and baseline of each benchmark."""
    rows: list[dict[str, Any]] = []
    for one in compared:
        known = {"experiment": one.run.name, **one.keys, **_training(one.run)}
        evaluations = one.run.evaluations
        rows += [
            {**known, "benchmark": e.entry.name, **{name: found.mean for name, found in _lines(e, e.last).items()}}
            for e in evaluations
        ]
        rows += [] if evaluations else [known]
    for group in zip(*(one.run.evaluations for one in compared), strict=True):
        rows += [
            {"experiment": label, "benchmark": group[0].entry.name, **means}
            for label, means in _others(compared, group)
        ]
    return pd.DataFrame(rows).convert_dtypes()  # whole numbers stay so beside what is missing

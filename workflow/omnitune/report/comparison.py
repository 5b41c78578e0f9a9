"""Compare the variants of a sweep: one HTML file over all of them, and a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from omnitune.config.choices import MEASURES
from omnitune.evaluation.statistics import Comparison
from omnitune.io.files import lock_folder, write_text
from omnitune.paths import BASE
from omnitune.report.build import page_environment
from omnitune.report.collect import Evaluation, Run
from omnitune.report.examples import choose_examples
from omnitune.report.images import image_entry
from omnitune.report.scores import ALL, measures_of, score_lines, show, show_interval

LAST_PART = 0.1  # of the steps, whose mean is shown as a training's loss


@dataclass(frozen=True)
class Variant:
    """A variant and what its run has left.

    Attributes:
        keys: what the sweep has set, with the values.
        run: from `omnitune.report.collect.collect`, with the same benchmarks for all.
    """

    keys: Mapping[str, Any]
    run: Run


def build_comparison(name: str, variants: Sequence[Variant], page: Path, table: Path) -> None:
    """Writes the comparison as one self-contained HTML file, and its figures as a table; equal inputs give equal bytes.

    Args:
        name: of the experiment that they are variants of.
        variants: at least one.
        page, table: the .html and the .csv file.
    """
    evaluations = [list(group) for group in zip(*(variant.run.evaluations for variant in variants), strict=True)]
    context = {
        "name": name,
        "keys": list(variants[0].keys),
        "variants": [
            {"name": variant.run.name, "values": _values(variant), **_training(variant.run)} for variant in variants
        ],
        "benchmarks": [_benchmark(variants, group) for group in evaluations],
    }
    text = page_environment().get_template("comparison.html.j2").render(**context)
    with lock_folder(page.parent):
        write_text(table, _table(variants).to_csv(index=False))
        write_text(page, text)


def _values(variant: Variant) -> list[str]:
    return [value if isinstance(value, str) else json.dumps(value) for value in variant.keys.values()]


def _training(run: Run) -> dict[str, Any]:
    """Steps, the mean loss of the last ones, and the last held-out loss; None where there is none."""
    losses = [row["loss"] for row in run.metrics if row.get("loss") is not None]
    heldout = [row["val_loss"] for row in run.metrics if row.get("val_loss") is not None]
    return {
        "steps": run.train.get("final_step"),
        "loss": fmean(losses[-math.ceil(len(losses) * LAST_PART) :]) if losses else None,
        "heldout": heldout[-1] if heldout else None,
    }


def _benchmark(variants: Sequence[Variant], evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Of one benchmark, the measures of the base and of each variant's last step, and some of the images."""
    measures = measures_of(evaluations[0])
    found = [_last_lines(evaluation) for evaluation in evaluations]
    best = {measure: _best(measure, [lines[measure].mean for lines in found]) for measure in measures}
    rows = [
        {
            "name": variant.run.name,
            "values": _values(variant),
            "cells": [_cell(measure, lines[measure], best[measure]) for measure in measures],
        }
        for variant, lines in zip(variants, found, strict=True)
    ]
    return {
        "name": evaluations[0].entry.name,
        "labels": [(MEASURES[measure].label, MEASURES[measure].higher_is_better) for measure in measures],
        "base": [show(measure, found[0][measure].base_mean) for measure in measures],
        "rows": rows,
        "examples": _examples(variants, evaluations),
    }


def _last_lines(evaluation: Evaluation) -> dict[str, Comparison]:
    """The newest step against the base, by measure."""
    lines = [line for line in score_lines(evaluation) if line.task == ALL and line.step == evaluation.last]
    return {line.measure: line.against_base for line in lines}


def _cell(measure: str, found: Comparison, best: float | None) -> dict[str, Any]:
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


def _examples(variants: Sequence[Variant], evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Images of the same prompts side by side: inputs, the base's, each variant's, and the target."""
    first, found = evaluations[0], []
    for prompt in choose_examples(first.entry.prompts)[0]:
        shots: list[tuple[Path | None, str]] = [(path, "input") for path in prompt.input_images]
        shots.append((first.image(BASE, prompt.key), "base"))
        for variant, evaluation in zip(variants, evaluations, strict=True):
            shots.append((evaluation.image(evaluation.last, prompt.key), ", ".join(_values(variant))))
        shots += [(prompt.target, "target")] if prompt.target else []
        images = [image_entry(path, caption, f"{caption}: {prompt.key}") for path, caption in shots]
        found.append(
            {
                "key": prompt.key,
                "task": prompt.task,
                "instruction": prompt.instruction,
                "images": [{**image, "result": None} for image in images],
            }
        )
    return found


def _table(variants: Sequence[Variant]) -> pd.DataFrame:
    """A row for each variant and benchmark, and one for the base of each benchmark."""
    rows: list[dict[str, Any]] = []
    for variant in variants:
        known = {"variant": variant.run.name, **variant.keys, **_training(variant.run)}
        evaluations = variant.run.evaluations
        rows += [{**known, "benchmark": e.entry.name, **e.scores[e.last]["means"]} for e in evaluations]
        rows += [] if evaluations else [known]
    for evaluation in variants[0].run.evaluations:
        rows.append({"variant": "base", "benchmark": evaluation.entry.name, **evaluation.scores[BASE]["means"]})
    return pd.DataFrame(rows).convert_dtypes()  # whole numbers stay so beside what is missing

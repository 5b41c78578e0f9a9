"""The images of a benchmark's prompts: which stand first, what is said below each, and by what they can be sorted."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from omnitune.config.choices import MEASURES
from omnitune.evaluation.prompts import Prompt
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import Evaluation
from omnitune.report.images import Thumbnails
from omnitune.report.scores import measures_of, primary_of, show

SHOWN_EXAMPLES = 12

Row = dict[str, Any]


def choose_examples(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(shown, rest), by key alone and so by no result: the first of each task type in turn, up to SHOWN_EXAMPLES.

    Further images of a prompt come behind the first ones of all.
    """
    ordered = sorted(prompts, key=lambda prompt: prompt.key)
    by_draw = sorted(ordered, key=lambda prompt: prompt.draw)
    tasks = list(dict.fromkeys(prompt.task for prompt in ordered))
    columns = [[prompt for prompt in by_draw if prompt.task == task] for task in tasks]
    turns = [prompt for turn in zip_longest(*columns) for prompt in turn if prompt is not None]
    keys = {prompt.key for prompt in turns[:SHOWN_EXAMPLES]}
    return [p for p in ordered if p.key in keys], [p for p in ordered if p.key not in keys]


def count_images(evaluation: Evaluation) -> int:
    """How many images `examples` shows."""
    prompts, rows = evaluation.entry.prompts, len(evaluation.shown)
    return sum(rows + len(prompt.input_images) + (prompt.target is not None) for prompt in prompts)


def examples(evaluation: Evaluation, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Each prompt with its images side by side, those that `choose_examples` shows first."""
    by_key = {step: {row["key"]: row for row in evaluation.scores[step]["per_prompt"]} for step in evaluation.shown}
    primary, measures = primary_of(evaluation), measures_of(evaluation)
    shown, rest = choose_examples(evaluation.entry.prompts)
    found = []
    for prompt in (*shown, *rest):
        rows = {step: by_key[step].get(prompt.key, {}) for step in evaluation.shown}
        found.append(
            {
                "key": prompt.key,
                "task": prompt.task,
                "instruction": prompt.instruction,
                "seed": evaluation.generations[BASE][prompt.key].get("seed"),
                "changes": _changes(rows[BASE], rows[evaluation.last], measures),
                "images": _images(evaluation, prompt, rows, primary, thumbnails),
            }
        )
    return found


def _changes(base: Row, last: Row, measures: Sequence[str]) -> dict[str, float]:
    """By measure, how much better the last step's image is; what is missing is left out."""
    both = [name for name in measures if base.get(name) is not None and last.get(name) is not None]
    signs = {name: 1 if MEASURES[name].higher_is_better else -1 for name in both}
    return {name: round(signs[name] * (last[name] - base[name]), 6) for name in both}


def _images(
    evaluation: Evaluation,
    prompt: Prompt,
    rows: dict[EvaluatedStep, Row],
    primary: str | None,
    thumbnails: Thumbnails,
) -> list[dict[str, Any]]:
    images = []
    for number, path in enumerate(prompt.input_images, start=1):
        caption = f"input {number}" if len(prompt.input_images) > 1 else "input"
        entry = thumbnails.entry(path, caption, f"{caption} of {prompt.key}")
        images.append({**entry, "kind": "input", "result": None})
    for step, row in rows.items():
        drawn = evaluation.image(step, prompt.key)
        entry = thumbnails.entry(drawn, step.label, f"image of {step.label} for {prompt.key}")
        images.append({**entry, "kind": "row", "result": _result(row, primary)})
    if prompt.target:
        entry = thumbnails.entry(prompt.target, "target", f"target of {prompt.key}")
        images.append({**entry, "kind": "target", "result": None})
    return images


def _result(row: Row, primary: str | None) -> dict[str, Any]:
    """What is written below an image: the check, or else the primary measure, of which one image shows nothing."""
    if row.get("check_passed") is not None:
        checked = [name for name in MEASURES if MEASURES[name].share and name in row and name != "check_passed"]
        wrong = [MEASURES[name].label.removesuffix(" right") for name in checked if not row[name]]
        passed = bool(row["check_passed"])
        return {"word": "better" if passed else "worse", "text": "right" if passed else f"wrong: {', '.join(wrong)}"}
    if primary is None:
        return {"word": "neutral", "text": ""}
    value = row.get(primary)
    text = "missing" if value is None else show(primary, value)
    return {"word": "neutral", "text": f"{MEASURES[primary].label} {text}"}

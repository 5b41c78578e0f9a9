"""The images of a benchmark's prompts: which are shown first, and what is said below each."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from omnitune.config.choices import MEASURES
from omnitune.evaluation.prompts import Prompt
from omnitune.paths import EvaluatedStep
from omnitune.report.collect import Evaluation
from omnitune.report.images import image_entry
from omnitune.report.scores import primary_of, show

SHOWN_EXAMPLES = 12


def choose_examples(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(shown, rest), by key alone and so by no result: the first of each task type in turn, up to SHOWN_EXAMPLES."""
    ordered = sorted(prompts, key=lambda prompt: prompt.key)
    tasks = list(dict.fromkeys(prompt.task for prompt in ordered))
    columns = [[prompt for prompt in ordered if prompt.task == task] for task in tasks]
    turns = [prompt for turn in zip_longest(*columns) for prompt in turn if prompt is not None]
    keys = {prompt.key for prompt in turns[:SHOWN_EXAMPLES]}
    return [p for p in ordered if p.key in keys], [p for p in ordered if p.key not in keys]


def example(evaluation: Evaluation, prompt: Prompt) -> dict[str, Any]:
    """The images of one prompt side by side, with what was measured of each."""
    images = []
    for number, path in enumerate(prompt.input_images, start=1):
        caption = f"input {number}" if len(prompt.input_images) > 1 else "input"
        images.append({**image_entry(path, caption, f"{caption} of {prompt.key}"), "result": None})
    for step in evaluation.shown:
        caption = step.label
        path = evaluation.image(step, prompt.key)
        alt = f"image of {caption} for {prompt.key}"
        images.append({**image_entry(path, caption, alt), "result": _result(evaluation, step, prompt.key)})
    if prompt.target:
        images.append({**image_entry(prompt.target, "target", f"target of {prompt.key}"), "result": None})
    return {"key": prompt.key, "task": prompt.task, "instruction": prompt.instruction, "images": images}


def _result(evaluation: Evaluation, step: EvaluatedStep, key: str) -> dict[str, Any]:
    """What is written below an image: the check, or else the primary measure, of which one image shows nothing."""
    row = next(row for row in evaluation.scores[step]["per_prompt"] if row["key"] == key)
    if "check_passed" in row:
        checked = [name for name in MEASURES if MEASURES[name].share and name in row and name != "check_passed"]
        wrong = [MEASURES[name].label.removesuffix(" right") for name in checked if not row[name]]
        passed = bool(row["check_passed"])
        return {"word": "better" if passed else "worse", "text": "right" if passed else f"wrong: {', '.join(wrong)}"}
    measure = primary_of(evaluation)
    if measure is None:
        return {"word": "neutral", "text": ""}
    value = row.get(measure)
    text = "missing" if value is None else show(measure, value)
    return {"word": "neutral", "text": f"{MEASURES[measure].label} {text}"}

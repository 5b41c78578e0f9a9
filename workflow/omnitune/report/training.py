"""What the report says of the training beside its curves: speed, time, memory, skipped steps, drawn images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from omnitune.io.kept import Shown, read_kept_lines
from omnitune.paths import PROMPTS_FILE
from omnitune.report.data import short, thousands
from omnitune.report.images import Thumbnails

SHOWN_SKIPPED = 10
SECONDS = "_seconds"  # the ending of a step's parts in metrics.jsonl
PART_LABELS = {
    "data": "waiting for data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "save": "checkpoints",
}

Row = Mapping[str, Any]


def training_context(
    train: Row, metrics: Sequence[Row], samples: "Sequence[Sample]", thumbnails: Thumbnails
) -> dict[str, Any]:
    """What the template shows: from train.json, metrics.jsonl and `read_samples`; what is missing is left out."""
    return {
        "facts": _facts(train, metrics),
        "reason": train.get("strategy_reason"),
        "times": step_times(metrics),
        "samples": [_sample(sample, thumbnails) for sample in samples],
    }


def ran(starts: Sequence[Row], metrics: Sequence[Row]) -> str:
    """When, how long and on what it trained, as one sentence; what is not known is left out.

    Args:
        starts: lines of logs/starts.jsonl.
        metrics: rows of logs/metrics.jsonl.
    """
    taken = sum(_values(metrics, "seconds"))
    parts = []
    if starts:
        first = starts[0]
        moment = datetime.fromisoformat(first["time"])
        machines = dict.fromkeys(f"{row['processes']} x {row['device']}" for row in starts)
        parts += [f"Trained from {moment:%Y-%m-%d %H:%M} UTC", f"on {', then '.join(machines)}"]
    if taken:
        parts.append(f"{'in' if starts else 'Trained in'} {_duration(taken)} of steps")
    if len(starts) > 1:
        parts.append(f"going on at step {', '.join(map(str, restarts(starts)))}")
    return f"{', '.join(parts)}." if parts else ""


def restarts(starts: Sequence[Row]) -> list[int]:
    """The steps at which it went on, of lines of logs/starts.jsonl."""
    return [row["first_step"] for row in starts[1:]]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _facts(train: Row, metrics: Sequence[Row]) -> list[tuple[str, str]]:
    tokens, memory, used = (_values(metrics, key) for key in ("tokens_per_second", "memory_mb", "mfu"))
    facts = [
        ("Skipped steps", _skipped(metrics)),
        ("Tokens per second", f"{short(median(tokens))} (median)" if tokens else None),
        ("Share of the peak FLOPs", f"{100 * median(used):.1f} % (median)" if used else None),
        ("Most memory of a process", short(1e6 * max(memory), "B") if memory else None),
    ]
    return [(label, str(value)) for label, value in facts if value is not None]


def _skipped(metrics: Sequence[Row]) -> str | None:
    """How many steps were left out as their loss or gradient was not finite, and which."""
    steps = [row["step"] for row in metrics if row.get("skipped")]
    if not steps:
        return None
    named = ", ".join(map(str, steps[:SHOWN_SKIPPED])) + (", ..." if len(steps) > SHOWN_SKIPPED else "")
    return f"{thousands(len(steps))}, as their loss or gradient was not finite: {named}"


def _values(metrics: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in metrics if row.get(key)]


def step_times(metrics: Sequence[Row]) -> list[dict[str, Any]]:
    """Label, median seconds and percent of all time for each part of a step, and for the rest of it.

    A median is over the steps that have the part; few steps write a checkpoint.
    """
    keys = {key: None for row in metrics for key in row if key.endswith(SECONDS)}
    order = [f"{part}{SECONDS}" for part in PART_LABELS]
    parts = [key for key in (*order, *(key for key in keys if key not in order)) if _values(metrics, key)]
    if not parts:
        return []
    taken = sum(sum(_values(metrics, key)) for key in parts)
    whole = max(taken, sum(_values(metrics, "seconds")))
    rows = []
    for key in parts:
        name, values = key.removesuffix(SECONDS), _values(metrics, key)
        label = PART_LABELS.get(name, name.replace("_", " "))
        rows.append({"label": label, "median": median(values), "share": 100 * sum(values) / whole})
    if whole > taken:
        rest = [row["seconds"] - sum(row.get(key) or 0 for key in parts) for row in metrics if row.get("seconds")]
        rows.append({"label": "other", "median": max(median(rest), 0), "share": 100 * (whole - taken) / whole})
    return rows


@dataclass(frozen=True)
class Sample:
    """A held-out prompt that was drawn while training.

    Attributes:
        key: of the sample.
        instruction: what was asked for; "" where it is not known.
        inputs: images that it was asked of.
        images: what was drawn, by step.
    """

    key: str
    instruction: str
    inputs: list[Path]
    images: dict[int, Path]


def read_samples(folder: Path) -> list[Sample]:
    """Prompts drawn while training, {step:08d}/{key}.png: those of the first and the last time that have both."""
    steps = sorted(path for path in folder.glob("*") if path.is_dir() and path.name.isdigit())
    if not steps:
        return []
    path = folder / PROMPTS_FILE
    prompts = {row["key"]: row for row in read_kept_lines(path, Shown)} if path.is_file() else {}
    ends = list(dict.fromkeys((steps[0], steps[-1])))
    shared = set.intersection(*({path.stem for path in step.glob("*.png")} for step in ends))
    samples = []
    for key in sorted(shared):
        row = prompts.get(key, {"instruction": "", "inputs": []})
        inputs = [folder / name for name in row["inputs"] if (folder / name).is_file()]
        images = {int(step.name): step / f"{key}.png" for step in ends}
        samples.append(Sample(key, row["instruction"], inputs, images))
    return samples


def count_samples(samples: Sequence[Sample]) -> int:
    """How many images they have."""
    return sum(len(sample.inputs) + len(sample.images) for sample in samples)


def _sample(sample: Sample, thumbnails: Thumbnails) -> dict[str, Any]:
    key = sample.key
    shots = [{**thumbnails.entry(path, "input", f"input of {key}"), "kind": "input"} for path in sample.inputs]
    for step, path in sample.images.items():
        caption = f"step {step}" if step else "step 0 (start)"
        shots.append({**thumbnails.entry(path, caption, f"image of step {step} for {key}"), "kind": "row"})
    return {"key": key, "instruction": sample.instruction, "images": [{**shot, "result": None} for shot in shots]}

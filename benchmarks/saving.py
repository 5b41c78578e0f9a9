"""What a checkpoint costs the step that saves it, in the foreground or background, on the demo's model and data."""

import json
import logging
import statistics
import tempfile
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.encoding import encode_demo, options_of, prepare
from omnitune.distributed.processes import Topology
from omnitune.launching.launch import launch
from omnitune.training.inputs import TrainingFiles

PROCESSES = 2
STEPS = 72
EVERY = 12  # steps between checkpoints
WARM_UP = 12  # first steps, which are not counted
ROUNDS = 2


def training_rows(folder: Path, name: str, background: bool) -> list[dict[str, float]]:
    """Rows of metrics.jsonl of a training of several processes, as `omnitune train` runs it."""
    train = {"async_checkpoint": background, "max_train_steps": STEPS, "parallelism": "fsdp"}
    options = options_of(folder, processes=PROCESSES, train=train, every=EVERY)
    paths = {"base": folder / "base", "transformer": folder / "base" / "transformer", "output": folder / name}
    paths |= {"index": folder / "shards" / "index.parquet", "encoded": folder / "encoded"}
    threads = max(1, torch.get_num_threads() // PROCESSES)
    launch(options, TrainingFiles(folder / "options.yml", **paths), Topology(PROCESSES, threads_per_process=threads))
    rows = [json.loads(line) for line in (folder / name / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if WARM_UP < row["step"] < STEPS]


def costs(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of a step that saves, of the two after it, in which it is still written, and of all others."""
    saving = [row["seconds"] for row in rows if row["step"] % EVERY == 0]
    after = [row["seconds"] for row in rows if row["step"] % EVERY in {1, 2}]
    normal = [row["seconds"] for row in rows if row["step"] % EVERY not in {0, 1, 2}]
    kinds = {"normal": normal, "saving": saving, "after": after}
    return {name: statistics.median(values) for name, values in kinds.items()}


def tables() -> list[Table]:
    """The three kinds of steps with each way of saving, in alternating runs."""
    logging.getLogger("omnitune").setLevel(logging.ERROR)
    columns = ["saving", "normal step, ms", "step that saves, ms", "ratio", "the two steps after it", "checkpoint, MB"]
    title = f"Saving in training the demo's model ({PROCESSES} processes with FSDP, every {EVERY} of {STEPS} steps)"
    result = Table(*columns, title=title)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        prepare(folder)
        encode_demo(folder)
        rows: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for number in range(ROUNDS):
            for background in rows:
                rows[background] += training_rows(folder, f"{number}-{background}", background)
        saved = folder / "0-False" / f"checkpoint-{EVERY}"
        size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) / 1e6
        for background, label in ((False, "foreground"), (True, "background (train.async_checkpoint)")):
            found = costs(rows[background])
            ratios = (f"{found[kind] / found['normal']:.2f}x" for kind in ("saving", "after"))
            milliseconds = (f"{1000 * found[kind]:.0f}" for kind in ("normal", "saving"))
            result.add_row(label, *milliseconds, *ratios, f"{size:.1f}")
    return [result]

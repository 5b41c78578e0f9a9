"""Validation: rows per second at each depth, and the memory that its processes need as rows become more."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from omnitune.validation.dataset import ShardCut, merge_validation
from omnitune.validation.source import Checks, validate_source
from omnitune.validation.summary import Outputs

IMAGES, SIDE = 200, 1024  # photographs are smoother than noise, and compress as this does
RATE_ROWS = {"header": 8_000, "full": 400}
MEMORY_ROWS = (50_000, 350_000)


def tables() -> list[Table]:
    """Rate by depth, and memory by rows."""
    with tempfile.TemporaryDirectory(prefix="omnitune-bench-") as name:
        folder = Path(name)
        _write_images(folder)
        return [_rates(folder), _memory(folder)]


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{k}.jpg", quality=90)


def _write_rows(folder: Path, rows: int) -> Path:
    path = folder / f"{rows}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for k in range(rows):
            caption = f"A caption of the usual length, number {k}, which says what is seen and where it stands. " * 2
            file.write(
                json.dumps({"task_type": "t2i", "instruction": caption, "output_image": f"{k % IMAGES}.jpg"}) + "\n"
            )
    return path


def _rates(folder: Path) -> Table:
    workers = os.cpu_count() or 1
    size = sum(path.stat().st_size for path in folder.glob("*.jpg")) / IMAGES
    title = f"Validation of JPEGs of {SIDE} x {SIDE} pixels, {size / 1024:.0f} KiB each"
    table = Table("depth", "workers", "rows/s", "against full", title=title)
    rates = {}
    for depth in ("full", "header"):
        path = _write_rows(folder, RATE_ROWS[depth])
        start = time.perf_counter()
        validate_source("a", [path], folder / depth, Checks(depth), workers=workers, progress=False)
        rates[depth] = RATE_ROWS[depth] / (time.perf_counter() - start)
        table.add_row(depth, str(workers), f"{rates[depth]:,.0f}", f"{rates[depth] / rates['full']:.1f} x")
    return table


def _memory(folder: Path) -> Table:
    """Peak memory of the processes of both rules, each measured in a process of its own."""
    table = Table(
        "process",
        *(f"{rows:,} rows" for rows in MEMORY_ROWS),
        "per million rows",
        "10 million rows",
        title="Peak memory in MB at depth header; "
        "what depth full adds at its end, looking for repeated hashes, stands below",
    )
    peaks: dict[str, list[float]] = {"validate_source": [], "its workers": [], "merge_validation": []}
    for rows in MEMORY_ROWS:
        path = _write_rows(folder, rows)
        own, workers = _measured("validate", path, folder / f"out{rows}")
        merging, _ = _measured("merge", path, folder / f"out{rows}")
        for name, value in zip(peaks, (own, workers, merging), strict=True):
            peaks[name].append(value)
    for name, values in peaks.items():
        growth = (values[-1] - values[0]) / (MEMORY_ROWS[-1] - MEMORY_ROWS[0])
        whole = values[0] + growth * (10_000_000 - MEMORY_ROWS[0])
        table.add_row(name, *(f"{value:.0f}" for value in values), f"{growth * 1e6:.1f}", f"{whole:.0f}")
    hashes, _ = _measured("hashes", folder, folder)
    table.add_row("hashes of depth full", "", "", "", f"+ {hashes:.0f}")
    return table


def _measured(step: str, path: Path, output: Path) -> list[float]:
    """What `_measure` prints of a step, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.validation", step, str(path), str(output)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.split()]


def _measure(step: str, path: Path, output: Path) -> None:
    """Runs one step and prints the peak memory of this process and of its largest worker, in MB."""
    before = 0
    if step == "validate":
        validate_source("a", [path], output / "a", Checks("header"), workers=2, progress=False)
    elif step == "merge":
        merge_validation([output / "a"], output / "merged", max_reject_fraction=0, cut=ShardCut(1000))
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outputs = Outputs()
        for k in range(10_000_000):
            outputs.add(f"{k * 2_654_435_761 % 2**64:016x}")
        outputs.repeated()
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print((resource.getrusage(who).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    _measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

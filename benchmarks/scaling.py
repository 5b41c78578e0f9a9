"""What grows with the data and with the GPUs: the index and the order of draws, measured; bytes and jobs, computed.

python -m benchmarks scaling.index       # measured, at INDEX_ROWS rows
python -m benchmarks scaling.order       # measured, at up to 100 million rows
python -m benchmarks scaling.arithmetic  # computed from the published model: docs/scaling.md has these tables
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from omnitune.loading.loader import TrainingBatches
from omnitune.loading.order import MixtureOrder
from omnitune.planning.published import TRANSFORMERS
from omnitune.sharding.index import ShardIndex
from omnitune.sharding.index_row import INDEX_SCHEMA
from omnitune.sharding.write_index import write_index

INDEX_ROWS, ROWS_PER_SHARD = 5_000_000, 10_000
ORDER_ROWS = (10_000_000, 100_000_000)
MANY = 100_000_000  # what is extrapolated to
STEPS, BATCH, WORLD = 20, 512, 64
CAPTION = "A caption of the usual length, which says what is seen and where it stands. " * 4

PARAMETERS = TRANSFORMERS["OmniGen2/OmniGen2"].parameters
GPUS, GPUS_PER_NODE = (8, 64, 512), 8
GATHERED, REDUCED = 2, 4  # bytes of a parameter that FSDP gathers in bf16, and of a gradient that it sums in fp32
STATE = 12  # bytes of a trained parameter in a checkpoint: the weight and two moments in fp32
NETWORKS = (12.5, 50.0, 400.0)  # GB/s into a node: 100 Gbit/s, 400 Gbit/s, and 400 Gbit/s for each of eight GPUs
DISKS = (2.0, 20.0)  # GB/s that a shared file system takes


def tables(part: str = "") -> list[Table]:
    """All of them, or those of a part."""
    parts = {"index": _index, "order": _order, "arithmetic": _arithmetic}
    return [table for name, make in parts.items() if part in ("", name) for table in make()]


# ------------------------------------------------------------------ measured


def _index() -> list[Table]:
    with tempfile.TemporaryDirectory(prefix="omnitune-bench-") as name:
        folder = Path(name)
        _write_parts(folder)
        found = _measured("write", folder) | _measured("read", folder)
    title = f"Index of {INDEX_ROWS:,} samples in shards of {ROWS_PER_SHARD:,}, instructions of {len(CAPTION)} bytes"
    table = Table("what", f"{INDEX_ROWS:,} rows", f"{MANY:,} rows, extrapolated", title=title)
    for what, value in found.items():
        grows = what.endswith(", s") or what.startswith("index.")  # what else is there, was not seen to
        table.add_row(what, f"{value:,.1f}", f"{value * MANY / INDEX_ROWS:,.0f}" if grows else "")
    return [table]


def _order() -> list[Table]:
    title = f"Draws of one source, {BATCH} a step, in a process of its own"
    columns = [f"{rows:,} rows" for rows in ORDER_ROWS]
    table = Table("what", *columns, title=title)
    found = [_measured("order", Path(), rows) for rows in ORDER_ROWS]
    for what in found[0]:
        table.add_row(what, *(f"{values[what]:,.1f}" for values in found))
    return [table]


def _write_parts(folder: Path) -> None:
    """The indexes of shards, each with a sample's usual facts: one input and one output."""
    rng = np.random.default_rng(0)
    rows = ROWS_PER_SHARD
    for shard in range(INDEX_ROWS // rows):
        first = shard * rows
        offsets = np.arange(rows) * 500_000
        hashes = rng.bytes(32 * rows).hex()
        columns: dict[str, Any] = {
            "source": ["a"] * rows,
            "shard": [shard] * rows,
            "key": [f"a_{first + k:08d}" for k in range(rows)],
            "task_type": ["edit"] * rows,
            "instruction": [f"{CAPTION}{k}" for k in range(rows)],
            "tar": [f"a-{shard:05d}.tar"] * rows,
            "json_offset": offsets,
            "json_size": [500] * rows,
            "image_offsets": list(np.stack([offsets + 2048, offsets + 250_000], 1)),
            "image_sizes": [[240_000, 240_000]] * rows,
            "widths": [[1024, 1024]] * rows,
            "heights": [[1024, 1024]] * rows,
            "output_tokens": [4096] * rows,
            "input_tokens": [4096] * rows,
            "text_tokens": rng.integers(50, 300, rows),
            "sha256": [hashes[64 * k : 64 * k + 64] for k in range(rows)],
            "tar_bytes": [500_000 * rows] * rows,
            "tar_sha256": [hashes[:64]] * rows,
        }
        arrays = [pa.array(columns[field.name], field.type) for field in INDEX_SCHEMA]
        pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), folder / f"a-{shard:05d}.parquet")


def _measured(step: str, folder: Path, rows: int = 0) -> dict[str, float]:
    """What a step prints of itself, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", step, str(folder), str(rows)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def _memory(line: str) -> float:
    """MB of a line of /proc/self/status: VmHWM is the peak, RssAnon what is no map of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) / 1024 for text in lines if text.startswith(line))


def _write(folder: Path) -> dict[str, float]:
    before, start = _memory("VmHWM"), time.perf_counter()
    write_index(sorted(folder.glob("a-*.parquet")), folder / "index.parquet")
    seconds = time.perf_counter() - start
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in ("index.parquet", "index.arrow")}
    return {"writing, s": seconds, "peak memory of that, MB": _memory("VmHWM") - before} | {
        f"{name}, MB": size for name, size in sizes.items()
    }


def _read(folder: Path) -> dict[str, float]:
    before, start = _memory("RssAnon"), time.perf_counter()
    index = ShardIndex.load(folder / "index.parquet")
    found = {"opening, s": time.perf_counter() - start, "memory of an open index, MB": _memory("RssAnon") - before}
    start = time.perf_counter()
    index.check_rows()
    found["looking through all rows, s"] = time.perf_counter() - start
    order = MixtureOrder(index.sizes(["a"]), [1.0], seed=0)
    sizes: dict[str, int] = {"global_batch_size": BATCH, "batch_size": BATCH // WORLD, "world_size": WORLD}
    batches = TrainingBatches(index, order, ["a"], seed=0, **sizes)
    batches.slots(0, 0)
    start = time.perf_counter()
    for number in range(1, STEPS + 1):
        batches.slots(number, 0)
    found[f"step: {BATCH} samples drawn and dealt to {WORLD} processes, ms"] = (
        (time.perf_counter() - start) / STEPS * 1000
    )
    return found


def _draw(rows: int) -> dict[str, float]:
    before, peak, start = _memory("RssAnon"), _memory("VmHWM"), time.perf_counter()
    order = MixtureOrder([rows], [1.0], seed=0)
    order.batch(0, BATCH)
    found = {"first step of a pass, s": time.perf_counter() - start}
    start = time.perf_counter()
    for number in range(1, STEPS + 1):
        order.batch(number, BATCH)
    found["any other step, ms"] = (time.perf_counter() - start) / STEPS * 1000
    return found | {"memory kept, MB": _memory("RssAnon") - before, "peak, MB": _memory("VmHWM") - peak}


# ------------------------------------------------------------------ computed


def _arithmetic() -> list[Table]:
    made = (traffic(), checkpoints(), data())
    tables = []
    for title, columns, rows in made:
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


Rows = tuple[str, list[str], list[list[str]]]


def node_bytes(strategy: str, nodes: int, microbatches: int) -> float:
    """The least that each node must receive from others in a step that trains all parameters.

    FSDP gathers all weights for the forward and again for the backward pass of each microbatch, and sums the gradients
    once; shares of other nodes come over the network, each at least once per node. HSDP shares within the node, so that
    gathering stays there; the sum over nodes is reduced and distributed again.
    """
    elsewhere = (nodes - 1) / nodes
    if strategy == "hsdp":
        return elsewhere * PARAMETERS * 2 * REDUCED
    return elsewhere * PARAMETERS * (2 * GATHERED * microbatches + REDUCED)


def traffic() -> Rows:
    """GB into each node in a step, and seconds that networks take for it."""
    rows = []
    for gpus in GPUS[1:]:
        nodes = gpus // GPUS_PER_NODE
        for strategy in ("fsdp", "hsdp"):
            for microbatches in (1, 4):
                size = node_bytes(strategy, nodes, microbatches) / 1e9
                times = [f"{size / network:.2f}" for network in NETWORKS]
                rows.append([str(gpus), str(nodes), strategy, str(microbatches), f"{size:.1f}", *times])
    columns = ["GPUs", "nodes", "strategy", "microbatches", "GB into a node", *(f"s at {n:g} GB/s" for n in NETWORKS)]
    return "Traffic between nodes in a step that trains all parameters", columns, rows


def checkpoints() -> Rows:
    """Size of a checkpoint with AdamW, files, and seconds to write it."""
    rows = []
    for gpus in GPUS:
        size = STATE * PARAMETERS / 1e9
        rows.append([str(gpus), f"{size:.1f}", f"{size / gpus:.2f}", *(f"{size / disk:.1f}" for disk in DISKS)])
    columns = ["GPUs", "GB", "GB of a process (fsdp)", *(f"s at {disk:g} GB/s" for disk in DISKS)]
    return "A checkpoint of all parameters", columns, rows


def data() -> Rows:
    """Tars, jobs and encodings by samples: a 1-megapixel input and output each, texts of 300 tokens."""
    image, text = 2 * 16 * 128 * 128 * 2, 300 * 2048 * 2  # mean and log-variance, and features, in bf16
    rows = []
    for samples, per_shard in ((100_000, 1_000), (2_000_000, 1_000), (MANY, 10_000)):
        shards = samples // per_shard
        tars = samples * 2 * 240_000 / 1e12
        encodings = samples * (2 * image + text) / 1e12
        row = [f"{samples:,}", f"{per_shard:,}", f"{shards:,}", f"{-(-shards // 16):,}", f"{tars:.2f}"]
        rows.append([*row, f"{encodings:.2f}"])
    columns = ["samples", "samples_per_shard", "shards", "encoding jobs", "TB of tars", "TB of encodings"]
    return "Data", columns, rows


def main() -> None:
    """Runs one step and prints its figures as JSON."""
    step, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = _draw(rows) if step == "order" else {"write": _write, "read": _read}[step](folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

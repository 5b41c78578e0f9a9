"""Training from encoded data against encoding online, on the demo's model and data; and what an encoding takes."""

import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState
from rich.table import Table

from omnitune.config import ExperimentOptions
from omnitune.demo.base_model import build_base_model
from omnitune.demo.dataset import write_dataset
from omnitune.distributed.processes import Topology
from omnitune.encoding.encode import EncodingFiles, encode_dataset
from omnitune.images.prepare import ImageLimits
from omnitune.sharding.shard import shard_dataset
from omnitune.training.inputs import TrainingFiles
from omnitune.training.loop import Trainer
from omnitune.validation.dataset import validate_mixture

THREADS = 2
STEPS = 16
ROWS = 250  # of each of the demo's sources
SOURCES = ("t2i", "edit", "in_context")
DEMO = Path(__file__).parents[1] / "config" / "options" / "demo.yml"


def prepare(folder: Path) -> int:
    """The demo's model and the first rows of its data, sharded below a folder; returns the number of samples."""
    build_base_model(folder / "base")
    write_dataset(folder / "demo")
    entries = []
    for source in SOURCES:
        lines = (folder / "demo" / f"{source}.jsonl").read_text().splitlines(keepends=True)
        path = folder / "demo" / f"{source}_part.jsonl"
        path.write_text("".join(lines[:ROWS]))
        entries.append({"path": str(path), "ratio": 1})
    (folder / "mix.yml").write_text(yaml.safe_dump({"data": entries}))
    summary = validate_mixture(folder / "mix.yml", folder / "validation", max_reject_fraction=0.1, progress=False)
    shard_dataset(folder / "validation", folder / "shards", ImageLimits(4096, 4096, 2048), progress=False)
    return int(summary["accepted"])


def options_of(
    folder: Path, *, processes: int = 1, train: dict[str, Any] | None = None, every: int = STEPS, **data: Any
) -> ExperimentOptions:
    """The demo's options, as a file too.

    Args:
        folder: of `prepare`.
        processes: that share the demo's global batch.
        train: changes of that section.
        every: steps between checkpoints.
        data: changes of that section.
    """
    content = yaml.safe_load(DEMO.read_text())
    content["data"] |= {"data_path": str(folder / "mix.yml"), **data}
    batch = content["train"]["global_batch_size"] // processes
    content["train"] |= {"batch_size": batch, "max_train_steps": STEPS, "async_checkpoint": False, **(train or {})}
    content["logger"], content["val"] = {"log_with": None, "checkpointing_steps": every}, {}
    (folder / "options.yml").write_text(yaml.safe_dump(content))
    return ExperimentOptions.load(folder / "options.yml")


def training_rate(folder: Path, options: ExperimentOptions, name: str) -> float:
    """Samples per second of a training, in the fastest of its steps: other work on the machine only slows one down."""
    AcceleratorState._reset_state(reset_partial_state=True)
    paths = {"base": folder / "base", "transformer": folder / "base" / "transformer", "output": folder / name}
    paths |= {"index": folder / "shards" / "index.parquet", "encoded": folder / "encoded"}
    Trainer(options, TrainingFiles(folder / "options.yml", **paths)).fit()
    rows = [json.loads(line) for line in (folder / name / "logs" / "metrics.jsonl").read_text().splitlines()]
    return float(max(row["samples_per_second"] for row in rows))


def encode_demo(folder: Path, **data: Any) -> None:
    """Encodes what `prepare` has sharded; `data` changes that section of the options."""
    files = EncodingFiles(folder / "options.yml", folder / "base", folder / "encoded")
    index = folder / "shards" / "index.parquet"
    encode_dataset(options_of(folder, **data), files, index, Topology(1, threads_per_process=THREADS))


def encoding_rate(folder: Path, samples: int, precision: str) -> float:
    """Samples per second of an encoding from nothing, with loading the models."""
    started = time.perf_counter()
    encode_demo(folder, encoded_precision=precision)
    return samples / (time.perf_counter() - started)


def tables() -> list[Table]:
    """Rates of training and encoding, and bytes per sample, of the same samples in each form."""
    torch.set_num_threads(THREADS)
    logging.getLogger("omnitune").setLevel(logging.ERROR)
    columns = ["data", "training, samples/s", "ratio", "encoding, samples/s", "bytes per sample"]
    title = f"Training on the demo's data, from shards and from encoded data ({STEPS} steps of 32, {THREADS} threads)"
    result = Table(*columns, title=title)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        samples = prepare(folder)
        online = training_rate(folder, options_of(folder, encode=False), "online")
        result.add_row(
            "shards, encoded online", f"{online:.1f}", "1.0", "", bytes_per_sample(folder / "shards", samples)
        )
        for precision in ("fp32", "bf16"):
            encoding = encoding_rate(folder, samples, precision)
            rate = training_rate(folder, options_of(folder, encoded_precision=precision), precision)
            size = bytes_per_sample(folder / "encoded", samples)
            result.add_row(f"encoded, {precision}", f"{rate:.1f}", f"{rate / online:.1f}", f"{encoding:.1f}", size)
    return [result]


def bytes_per_sample(folder: Path, samples: int) -> str:
    """Size of the tars of a folder for each sample."""
    return f"{sum(tar.stat().st_size for tar in folder.glob('*.tar')) / samples:,.0f}"

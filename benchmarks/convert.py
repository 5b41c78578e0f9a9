"""Converting a checkpoint of all parameters, float32 to bfloat16, against copying it: seconds and memory."""

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import yaml
from rich.table import Table

from omnitune.checkpoints.states import TrainerState
from omnitune.conversion.keys import empty_transformer
from omnitune.io.files import sha256_of
from omnitune.paths import MODEL_FOLDER, STATE_FILE

LAYERS = {"": 8, "full": 32}  # joint layers: 1.45 billion parameters, or all 3.97
ARCHITECTURE = {"hidden_size": 2520, "num_attention_heads": 21, "num_kv_heads": 7, "axes_dim_rope": [40, 40, 40]}
FILES = 2  # of the checkpoint, as two processes write them
ROUNDS = 2
COMMAND = "from omnitune.cli import main; main()"


def shapes_of(layers: int) -> dict[str, torch.Size]:
    """Of all parameters, by name."""
    model = empty_transformer({**ARCHITECTURE, "num_layers": layers})
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def write_checkpoint(folder: Path, layers: int, shapes: dict[str, torch.Size]) -> None:
    """A checkpoint of random weights, as training leaves it, with its options."""
    numbers = torch.randn(max(shape.numel() for shape in shapes.values()) + len(shapes))
    # parts of one memory, so that the benchmark itself takes little
    state = {name: numbers[i : i + shape.numel()].view(shape) for i, (name, shape) in enumerate(shapes.items())}
    model = folder / "checkpoint-1" / MODEL_FOLDER
    dcp.save(state, storage_writer=dcp.FileSystemWriter(model, thread_count=FILES, sync_files=False), no_dist=True)
    hashes = {f"{MODEL_FOLDER}/{path.name}": sha256_of(path) for path in sorted(model.iterdir())}
    content = vars(TrainerState(1, {"options": {}, "data": {}}, None, files=hashes))
    (folder / "checkpoint-1" / STATE_FILE).write_text(json.dumps(content))
    options = {"name": "bench", "data": {"data_path": "mix.yml"}, "model": {"pretrained_model_path": "demo"}}
    options["model"] |= {"arch_opt": {**ARCHITECTURE, "num_layers": layers}}
    (folder / "options.yml").write_text(yaml.safe_dump(options))


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds that a command takes, those of processors, and its most anonymous memory in GB."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with watched(process.pid) as peak:
        code = process.wait()
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit(f"{' '.join(command)}: failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak[0] / 1e6


@contextmanager
def watched(process: int) -> Iterator[list[int]]:
    """The most anonymous memory of a process so far, in kB, looked at every 20 ms."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            try:
                text = Path(f"/proc/{process}/status").read_text()
            except OSError:
                return
            found = [int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")]
            peak[0] = max([*peak, *found])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def tables(size: str = "") -> list[Table]:
    """`cp` of the checkpoint and its conversion, in turns; `convert.full` takes the published size."""
    if size not in LAYERS:
        raise SystemExit(f"convert.{size}: there is convert, and convert.full.")
    measured: dict[str, list[tuple[float, float, float]]] = {"cp": [], "convert": []}
    shapes = shapes_of(LAYERS[size])
    total = 4 * sum(shape.numel() for shape in shapes.values())
    title = f"A checkpoint of {total / 4e9:.2f} billion parameters in fp32 ({total / 1e9:.1f} GB), converted to bf16"
    result = Table("", "seconds", "times cp", "of processors", "peak anonymous memory, GB", title=title)
    if shutil.disk_usage(tempfile.gettempdir()).free < 2.1 * total:
        result.add_row(f"not run: {tempfile.gettempdir()} has no room for two of these", "", "", "", "")
        return [result]
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        write_checkpoint(folder, LAYERS[size], shapes)
        source, copy, converted = folder / "checkpoint-1", folder / "copy", folder / "converted"
        options = ["--config_path", str(folder / "options.yml"), "--model_path", str(source), "--dtype", "bf16"]
        convert = [sys.executable, "-c", COMMAND, "convert", *options, "--save_path", str(converted)]
        for _ in range(ROUNDS):
            for what, command, made in (
                ("cp", ["cp", "-r", str(source), str(copy)], copy),
                ("convert", convert, converted),
            ):
                measured[what].append(run(command))
                subprocess.run(["rm", "-r", str(made)], check=True)
    best = {what: min(found) for what, found in measured.items()}
    for what, (seconds, processors, memory) in best.items():
        row = f"{seconds:.1f}", f"{seconds / best['cp'][0]:.2f}x", f"{processors:.1f}", f"{memory:.2f}"
        result.add_row(what, *row)
    return [result]

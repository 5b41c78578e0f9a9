"""Trainings as a user starts them, on all three tasks of the demo: their options, losses and what checkpoints hold."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from helpers.tiny import OPTIONS
from helpers.workplace import Workplace

STEPS = 20
TASKS = ("t2i", "edit", "in_context")
TRAINED = "experiments/tiny/checkpoint-12/transformer"  # what an experiment has left: another start than the base


def write_options(place: Workplace, name: str, start: str = "demo", **sections: dict[str, Any]) -> str:
    """Writes config/options/{name}.yml: the small experiment on all tasks, with changed keys; returns its path."""
    options = yaml.safe_load(yaml.safe_dump(OPTIONS))
    options["name"] = name
    options["data"] |= {"data_path": "config/data/mixed.yml", "max_input_pixels": [1024, 1024]}
    options["model"]["pretrained_model_path"] = start
    options["train"] |= {"max_train_steps": STEPS}
    options["logger"] |= {"log_with": None, "checkpointing_steps": 10}
    for section, keys in sections.items():
        options.setdefault(section, {}).update(keys)
    path = f"config/options/{name}.yml"
    (place.root / path).write_text(yaml.safe_dump(options))
    return path


def prepare_mixed(place: Workplace) -> None:
    """Shards and encodes the data of `write_options`."""
    sources = [{"path": f"resources/demo/{task}.jsonl", "ratio": 1} for task in TASKS]
    (place.root / "config/data/mixed.yml").write_text(yaml.safe_dump({"data": sources}))
    config = ["--config", f'experiments=["{write_options(place, "mixed")}"]', "benchmarks=[]"]
    place.snakemake("shard", "encode", *config)


def train(place: Workplace, name: str, *, ok: bool = True, start: str = "demo", **sections: dict[str, Any]) -> str:
    """`omnitune train` with the options of `write_options`; gives its output."""
    done = place.run("omnitune", "train", "--config", write_options(place, name, start, **sections))
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == ok, output[-6000:]
    return output


def start_training(
    place: Workplace, name: str, *arguments: str, prefix: tuple[str, ...] = (), **environment: str
) -> Any:
    """Starts `omnitune train` of written options in the background, its output in {name}.log."""
    program = str(Path(sys.executable).parent / "omnitune")
    command = [*prefix, program, "train", "--config", f"config/options/{name}.yml", *arguments]
    log = (place.root / f"{name}.log").open("a")
    return subprocess.Popen(
        command, cwd=place.root, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **environment}
    )


def log_of(place: Workplace, name: str) -> str:
    """What the trainings of `start_training` under this name have said."""
    path = place.root / f"{name}.log"
    return path.read_text() if path.exists() else ""


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 120) -> bool:
    """Waits until the condition holds (True) or the process has ended (False)."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return True


def ranks(place: Workplace, name: str) -> list[int]:
    """Process ids of the training processes of an experiment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            here = (entry / "cwd").resolve() == place.root.resolve()
        except OSError:
            continue
        mine = b"omnitune.distributed.processes" not in words and b"omnitune.training" in b" ".join(words)
        if entry.name.isdigit() and here and mine and f"config/options/{name}.yml".encode() in words:
            found.append(int(entry.name))
    return sorted(found)


def kill(process: int) -> None:
    """SIGKILL, whether the process is still there or not."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return


def rows(place: Workplace, name: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, but for one that is being written."""
    path = place.root / f"experiments/{name}/logs/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def difference(one: list[dict[str, Any]], other: list[dict[str, Any]], key: str = "loss") -> float:
    """Largest relative difference of a figure over all steps."""
    assert [row["step"] for row in one] == [row["step"] for row in other]
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, other, strict=True))


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by folder and name: weights, optimizer and average."""
    found: dict[str, torch.Tensor] = {}
    for folder in sorted(path for path in checkpoint.iterdir() if (path / ".metadata").is_file()):
        reader = FileSystemReader(folder)
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        load(state, storage_reader=reader, no_dist=True)
        found |= {f"{folder.name}/{name}": tensor for name, tensor in state.items()}
    return found


def largest_difference(one: Path, other: Path) -> float:
    """Over all tensors of two checkpoints, which must have the same ones; 0 where they are equal to the last bit."""
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys() and first
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)

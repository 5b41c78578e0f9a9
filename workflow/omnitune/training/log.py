"""Figures of each training step: logs/metrics.jsonl, TensorBoard and, if asked for, wandb."""

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from omnitune.config.experiment.options import ExperimentOptions
from omnitune.io.files import json_line, write_text
from omnitune.paths import STARTS_FILE
from omnitune.training.progress import metrics_row


class MetricsLog:
    """Writes one row per step; on resume, rows of steps that are computed again are dropped first."""

    def __init__(self, options: ExperimentOptions, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _keep_rows_before(self.path, first_step)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)
        trackers = options.logger.trackers
        self.board = (
            SummaryWriter(str(folder / "tensorboard"), purge_step=first_step) if "tensorboard" in trackers else None
        )
        self.wandb = _start_wandb(options, folder) if "wandb" in trackers else None

    def write(self, row: dict[str, Any]) -> None:
        """Writes the figures of one step; `row` has "step" and numbers, lists of them for bins, or numbers by name."""
        row = _finite_only(row)
        self.file.write(json.dumps(row) + "\n")
        scalars = _flatten(row)
        for name, value in scalars.items():
            if self.board:
                self.board.add_scalar(name, value, row["step"])
        if self.wandb:
            self.wandb.log(scalars, step=row["step"])

    def write_images(self, step: int, paths: Sequence[Path]) -> None:
        """Shows images, as they lie on disk, to the trackers."""
        if self.board:
            for path in paths:
                with Image.open(path) as image:
                    self.board.add_image(f"samples/{path.stem}", np.asarray(image), step, dataformats="HWC")
        if self.wandb:
            import wandb

            self.wandb.log({f"samples/{path.stem}": wandb.Image(str(path)) for path in paths}, step=step)

    def close(self) -> None:
        """Flushes all writers."""
        self.file.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def note_start(folder: Path, first_step: int, device: torch.device, processes: int) -> None:
    """Adds a line to logs/starts.jsonl: when and on what the training begins or goes on. For people alone."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"time": now, "first_step": first_step, "device": device_name(device), "processes": processes}
    with (folder / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json_line({**facts, "torch": torch.__version__}))


def device_name(device: torch.device) -> str:
    """Model of the GPU, or of the processor without one."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _finite_only(value: Any) -> Any:
    """Figures that JSON can hold: null in place of what is no number, in lists and mappings too."""
    if isinstance(value, dict):
        return {key: _finite_only(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flatten(row: dict[str, Any]) -> dict[str, float]:
    """Figures by the names that trackers show: train/.., val/.., one for each bin or name of a figure with several."""
    scalars: dict[str, float] = {}
    for name, value in row.items():
        shown = f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
        if isinstance(value, list):
            count = len(value)
            bins = {f"{name}/{i / count:.1f}-{(i + 1) / count:.1f}": v for i, v in enumerate(value)}
            scalars |= {key: v for key, v in bins.items() if v is not None}
        elif isinstance(value, dict):
            scalars |= {f"{shown}/{key}": v for key, v in value.items() if v is not None}
        elif name != "step" and value is not None:
            scalars[shown] = value
    return scalars


def _keep_rows_before(path: Path, first_step: int) -> None:
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    rows = ((line, metrics_row(line)) for line in lines)  # the last line of a killed run is cut
    write_text(path, "".join(f"{line.decode()}\n" for line, row in rows if row and row["step"] < first_step))


def _start_wandb(options: ExperimentOptions, folder: Path) -> Any:
    import wandb

    starts = len(list(folder.parent.glob("superseded-*")))  # a run of its own for each time it starts over
    try:
        return wandb.init(
            project=options.logger.project_name,
            name=options.name,
            dir=str(folder),
            config=options.model_dump(mode="json"),
            resume="allow",
            id=f"{options.name}-{starts}" if starts else options.name,
        )
    except wandb.errors.Error as error:
        raise ValueError(
            f"logger.log_with: 'wandb' does not start: {error}. Type `wandb login`, or set WANDB_MODE=offline."
        ) from None


def check_trackers(options: ExperimentOptions) -> None:
    """Raises ValueError if a tracker is asked for that is not installed."""
    if "wandb" in options.logger.trackers:
        try:
            import wandb  # noqa: F401
        except ImportError:
            raise ValueError(
                "logger.log_with: 'wandb' is not installed. Type `pip install wandb` or take it out of the list."
            ) from None

"""The command that makes an image of a report again, typed: it gives the same file."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.pipelines import build_pipeline, protocol, read_rows
from omnitune.cli import app
from omnitune.evaluation.generate import generate_part
from omnitune.evaluation.prompts import Prompt
from omnitune.evaluation.weights import EvaluatedWeights
from omnitune.models import lora_config, lora_state_dict, save_lora
from omnitune.report.commands import remake_command

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROMPTS = [
    {"key": "t2i", "task_type": "t2i", "instruction": 'it\'s a "red" circle $HOME; `x`', "height": 32, "width": 48},
    {"key": "edit", "task_type": "edit", "instruction": "--make it red", "input_images": ["in put.png"]},
    {"key": "ic", "task_type": "ic", "instruction": "both\nof them", "input_images": ["in put.png", "other.png"]},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, another transformer and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    pipeline = build_pipeline()
    pipeline.save_pretrained(folder / "base")
    build_pipeline(seed=3).transformer.save_pretrained(folder / "tuned/transformer")
    pipeline.transformer.add_adapter(lora_config(2))
    state = lora_state_dict(pipeline.transformer)
    save_lora(folder / "tuned/transformer_lora", {name: torch.randn(t.shape) for name, t in state.items()})
    return folder


@pytest.mark.parametrize(
    ("tuned", "scale", "settings"),
    [
        (None, 1.0, {"max_pixels": 1024, "align_res": False}),
        ("transformer", 1.0, {"images_per_prompt": 2, "max_side_length": 32}),
        ("transformer_lora", 0.5, {"max_input_pixels": 512, "scheduler": "dpmsolver++", "cfg_range": (0.0, 0.5)}),
    ],
)
def test_an_image_is_made_again(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuned: str | None, scale: float, settings: Any
) -> None:
    """Of a base, a checkpoint and an adapter; without inputs, with one and with several."""
    monkeypatch.chdir(models)
    rng = np.random.default_rng(0)
    for name in ("in put.png", "other.png"):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(name)
    benchmark = protocol(loss_timesteps=0, negative_prompt="", **settings)
    prompts = [
        Prompt(
            f"{line['key']}-{draw}",
            line["task_type"],
            line["instruction"],
            tuple(map(Path, line.get("input_images", ()))),
            size=(48, 32) if "width" in line else None,
            line_key=line["key"],
            draw=draw,
        )
        for line in PROMPTS
        for draw in range(benchmark.draws)
    ]
    monkeypatch.setattr("omnitune.evaluation.generate.read_prompts", lambda *_: prompts)
    found = Path("tuned", tuned) if tuned else None
    lora, transformer = (found, None) if tuned == "transformer_lora" else (None, found)
    weights = EvaluatedWeights(Path("base"), transformer, lora, scale)
    rows = read_rows(generate_part(benchmark, weights, tmp_path / "drawn", part=0, threads=1, name="x"))
    for row, prompt in zip(rows, prompts, strict=True):
        command = remake_command(benchmark, row["weights"], prompt, row["seed"])
        program, *arguments = shlex.split(command)
        assert program == "omnitune"
        done = CliRunner().invoke(app, arguments)
        assert done.exception is None, done.output
        assert Path(f"{prompt.key}.png").read_bytes() == (tmp_path / "drawn" / row["image"]).read_bytes(), command

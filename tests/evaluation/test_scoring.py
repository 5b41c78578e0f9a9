"""Generated images are measured and summed up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.pipelines import described, protocol, read_rows
from omnitune.evaluation.generate import generate
from omnitune.evaluation.loss import loss_times
from omnitune.evaluation.measures.measure import Case, measure
from omnitune.evaluation.measures.pixels import HIGHEST_PSNR
from omnitune.evaluation.prompts import Prompt, open_image
from omnitune.evaluation.results import read_generations, read_scores
from omnitune.evaluation.scoring import score
from omnitune.models import OmniGen2Pipeline
from omnitune.paths import BASE

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_scores_sum_up_what_was_generated(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    weights = described(base)
    part = generate(protocol(), prompts, pipeline, output, weights=weights)
    scores = score(protocol(), prompts, [part], output, name="mine", step=BASE, weights=weights)
    text = (output / "scores.json").read_bytes()
    assert json.loads(text) == scores == read_scores(output)
    assert list(read_generations(output, scores)) == ["edit-1", "t2i-1", "t2i-2"]
    assert scores["weights"] == weights
    assert scores["prompts"] == 3
    assert set(scores["means"]) >= {"psnr", "ssim", "loss"}
    assert scores["means"]["psnr"] == pytest.approx(
        np.mean([row["psnr"] for row in scores["per_prompt"][:2]]), abs=1e-5
    )
    assert scores["per_prompt"][2] == {"key": "t2i-2", "task_type": "t2i", "category": None}
    assert scores["missing"] == 0
    assert [time for time, _ in scores["loss_by_time"]] == loss_times(protocol())
    assert len(read_rows(output / "generations.jsonl")) == 3
    score(protocol(), prompts, [part], output, name="mine", step=BASE, weights=weights)
    assert (output / "scores.json").read_bytes() == text


def test_scores_refuse_what_is_incomplete_or_of_another_protocol(
    base: Path, pipeline: OmniGen2Pipeline, prompts: list[Prompt], tmp_path: Path
) -> None:
    output, weights = tmp_path / "run", described(base)
    part = generate(protocol(), prompts[:2], pipeline, output, weights=weights)

    def scored(prompts: list[Prompt], parts: list[Path], weights: dict[str, Any] = weights) -> dict[str, Any]:
        return score(protocol(), prompts, parts, output, name="mine", step=BASE, weights=weights)

    again = rf"Draw the images again: snakemake --cores 2 --force {part}"
    with pytest.raises(ValueError, match=rf"made under another protocol .*{again}"):
        scored(prompts, [part])
    with pytest.raises(ValueError, match="2 of 2 prompts have no image"):
        scored(prompts[:2], [])
    with pytest.raises(
        ValueError, match=rf"0\.jsonl:1: made with other weights than those that are there now\. {again}"
    ):
        scored(prompts[:2], [part], {**weights, "sha256": "other"})
    text = part.read_text()
    part.write_text(text.replace("a red circle.", "a red square."))
    with pytest.raises(ValueError, match=rf"0\.jsonl:2: was changed after it was written\. {again}"):
        scored(prompts[:2], [part])
    part.write_text(text)
    (output / "images/t2i-1.png").write_bytes((output / "images/edit-1.png").read_bytes())
    with pytest.raises(ValueError, match=rf"t2i-1\.png: .*its SHA-256 differs.*Draw it again: .*--force {part}"):
        scored(prompts[:2], [part])
    (output / "images/t2i-1.png").unlink()
    with pytest.raises(ValueError, match=r"t2i-1\.png: is missing"):
        scored(prompts[:2], [part])
    assert not (output / "scores.json").exists()


def test_image_measures_agree_with_their_definition() -> None:
    rng = np.random.default_rng(1)
    one = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
    other = np.clip(one.astype(int) + rng.integers(-9, 9, one.shape), 0, 255).astype(np.uint8)
    prompt = Prompt("p", "t2i", "a red circle")
    names = ["psnr", "ssim", "loss"]
    measured = measure(Case(prompt, Image.fromarray(one), Image.fromarray(other)), names)
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    assert measured["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-5)
    assert 0.9 < measured["ssim"] < 1
    same = Case(prompt, Image.fromarray(one), Image.fromarray(one), losses=(0.25, 0.5))
    assert measure(same, names) == {"psnr": HIGHEST_PSNR, "ssim": 1.0, "loss": 0.375}
    assert measure(Case(prompt, Image.fromarray(one)), names) == {}, "no figure where there is nothing to measure"


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"x\.png: cannot be read as an image"):
        open_image(tmp_path / "x.png")

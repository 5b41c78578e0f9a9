"""The command line does what the rules do, on the same files."""

import hashlib
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.workplace import Workplace
from omnitune.cli import app, main

pytestmark = pytest.mark.workflow


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(workplace: Workplace, *arguments: str) -> str:
    done = workplace.run("omnitune", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_validate_and_shard(workplace: Workplace) -> None:
    run(
        workplace,
        "validate",
        "config/data/tiny.yml",
        "--output",
        "v",
        "--max-reject-fraction",
        "0.05",
        "--samples-per-shard",
        "200",
        "--tokenizer",
        "resources/pretrained/demo",
        "--maximum-text-tokens",
        "64",
    )
    limits = ["--max-output-pixels", "1024", "--max-input-pixels", "1024", "--max-side-length", "2048"]
    run(workplace, "shard", "--validated", "v", "--output", "s", *limits)
    shards = [path for path in (workplace.root / "prepared/tiny/shards").iterdir() if path.suffix not in {".json", ""}]
    assert {path.suffix for path in shards} == {".tar", ".parquet", ".arrow"}
    for path in shards:
        assert sha256(workplace.root / "s" / path.name) == sha256(path)
    for name in ("samples.parquet", "rejected.jsonl", "summary.json"):
        assert sha256(workplace.root / "v" / name) == sha256(workplace.root / "prepared/tiny/validation" / name)


def test_validate_past_the_limit(workplace: Workplace) -> None:
    done = workplace.run("omnitune", "validate", "config/data/tiny.yml", "--output", "v", "--max_reject_fraction", "0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_convert_with_the_published_options(workplace: Workplace) -> None:
    checkpoint = "experiments/tiny/checkpoint-12"
    arguments = ["--config_path", "config/options/tiny.yml", "--model_path", checkpoint]
    run(workplace, "convert", *arguments, "--save_path", "converted")
    name = "diffusion_pytorch_model.safetensors"
    assert sha256(workplace.root / "converted" / name) == sha256(workplace.root / checkpoint / "transformer" / name)


def test_generate_with_the_published_options(workplace: Workplace) -> None:
    inputs = sorted(str(path) for path in (workplace.root / "resources/demo/images").rglob("*.png"))[:2]
    assert len(inputs) == 2
    run(
        workplace,
        *["generate", "--model_path", "resources/pretrained/demo", "--instruction", "make the circle green"],
        *["--input_image_path", *inputs, "--num_inference_step", "2", "--height", "64", "--width", "48"],
        *["--text_guidance_scale", "1.5", "--image_guidance_scale", "1.2", "--negative_prompt", "", "--seed", "3"],
        *["--transformer_path", "experiments/tiny/checkpoint-12/transformer", "--dtype", "fp32"],
        *["--num-images-per-prompt", "2", "--cfg_range_start", "0", "--cfg_range_end", "0.8"],
        *["--scheduler", "dpmsolver++", "--enable_model_cpu_offload", "--output_image_path", "out/image.png"],
    )
    for number in (0, 1):
        with Image.open(workplace.root / f"out/image_{number}.png") as image:
            assert image.size == (48, 64)


def test_evaluate(workplace: Workplace) -> None:
    scores = workplace.root / "experiments/tiny/evaluation/12/tiny/scores.json"
    before = sha256(scores)
    scores.unlink()
    run(
        workplace,
        "evaluate",
        "--config",
        "config/options/tiny.yml",
        "--benchmark",
        "config/benchmarks/tiny.yml",
        "--step",
        "12",
        "--num-threads",
        "1",
    )
    assert sha256(scores) == before


def test_report(workplace: Workplace) -> None:
    page = workplace.root / "experiments/tiny/report/index.html"
    before = sha256(page)
    page.unlink()
    benchmark = ["--benchmark", "config/benchmarks/tiny.yml"]
    run(workplace, "report", "--config", "config/options/tiny.yml", *benchmark)
    assert sha256(page) == before


def test_help_teaches(workplace: Workplace) -> None:
    assert "Usage: omnitune [OPTIONS] COMMAND" in run(workplace, "--help")
    for command in (
        "validate",
        "shard",
        "encode",
        "train",
        "convert",
        "merge",
        "inspect",
        "generate",
        "evaluate",
        "report",
        "schema",
    ):
        text = CliRunner().invoke(app, [command, "--help"], prog_name="omnitune").output
        assert f"Usage: omnitune {command}" in text and "--help" in text


def test_mistakes_have_no_traceback(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process: what is imported on the way is imported once."""
    monkeypatch.chdir(workplace.root)
    for arguments in (
        ["validate", "none.yml", "--output", "v"],
        ["convert", "--config_path", "config/options/tiny.yml", "--model_path", "none", "--save_path", "x"],
        ["generate", "--model_path", "none"],
        ["shard", "--validated", "none", "--output", "s", "--max_input_pixels", "a"],
    ):
        monkeypatch.setattr(sys, "argv", ["omnitune", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capfd.readouterr().err
        assert ended.value.code == 1, arguments
        assert printed.startswith("Error: "), printed
        assert "Traceback" not in printed

"""`omnitune generate`: one instruction or a list, adapters with strengths, options that do not go together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from helpers.pipelines import build_pipeline
from omnitune.cli import app
from omnitune.cli.commands import _spread
from omnitune.evaluation.prompts import read_instructions
from omnitune.io.files import sha256_of
from omnitune.models import lora_config, lora_state_dict, save_lora

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.mark.parametrize("name", ["noext", "a.psd", "a.pdf", "folder/"])
def test_an_output_that_is_no_image_fails_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    arguments = ["generate", "--model_path", str(tmp_path / "nowhere"), "--instruction", "x"]
    done = CliRunner().invoke(app, [*arguments, "--output_image_path", str(tmp_path / name)])
    assert isinstance(done.exception, ValueError)
    assert str(done.exception).startswith(
        f"--output_image_path: {(tmp_path / name)} is no name of an image; end it with"
    )
    assert not list(tmp_path.iterdir())


def drawn(base: Path, tmp_path: Path, *options: object) -> Path:
    """What `omnitune generate` writes for tiny images."""
    size = ["--height", "32", "--width", "48", "--num_inference_step", "2", "--dtype", "fp32", "--negative_prompt", ""]
    arguments = ["generate", "--model_path", base, *size, "--output_image_path", tmp_path / "out" / "x.png", *options]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None:
        raise done.exception
    return tmp_path / "out"


def test_several_images_lie_side_by_side_and_inputs_may_be_a_folder(base: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    for name, size in (("b.png", (64, 32)), ("a.png", (32, 32)), (".hidden", (16, 16))):
        Image.new("RGB", size, "red").save(tmp_path / "inputs" / name, format="PNG")
    options = ["--input_image_path", tmp_path / "inputs", "--max_input_image_pixels", "512"]
    folder = drawn(base, tmp_path, *options, "--num_images_per_prompt", "2")
    images = [np.asarray(Image.open(folder / f"x{end}.png")) for end in ("_0", "_1", "")]
    assert images[0].shape == (32, 48, 3) and np.array_equal(np.hstack(images[:2]), images[2])
    for number in range(4):
        Image.new("RGB", (32, 32)).save(tmp_path / "inputs" / f"{number}.png")
    with pytest.raises(ValueError, match="--input_image_path: 6 images; the model takes at most 5"):
        drawn(base, tmp_path, *options)


def test_numbers_that_are_not_finite_are_no_picture(base: Path, tmp_path: Path) -> None:
    """Of weights that are finite themselves: such pictures would be black, and look like success."""
    model = build_pipeline().transformer
    model.add_adapter(lora_config(2))
    huge = {name: torch.full_like(value, 1e30) for name, value in lora_state_dict(model).items()}
    save_lora(tmp_path / "huge", huge, None)
    options = ["--transformer_lora_path", tmp_path / "huge"]
    with pytest.raises(ValueError, match="no image was drawn: their numbers are not finite"):
        drawn(base, tmp_path, *options)
    (tmp_path / "list.txt").write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match=r"2 of 2 images were not drawn \(00001, 00002\): their numbers are not"):
        drawn(base, tmp_path, *options, "--prompts", tmp_path / "list.txt", "--output_image_path", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))


def test_weights_are_what_their_manifest_says(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    shutil.copytree(base / "transformer", folder)
    hashes = {path.name: {"sha256": sha256_of(path)} for path in folder.iterdir()}
    (folder / "conversion.json").write_text(json.dumps({"files": hashes}))
    drawn(base, tmp_path, "--transformer_path", folder)
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-64:] = bytes(64)
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"\.safetensors: is not what was written \(its SHA-256 differs from .*conv"):
        drawn(base, tmp_path, "--transformer_path", folder)


def test_adapters_have_strengths(base: Path, tmp_path: Path) -> None:
    model = build_pipeline().transformer
    model.add_adapter(lora_config(2))
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_lora(tmp_path / f"lora{seed}", {name: torch.randn(t.shape) for name, t in lora_state_dict(model).items()})
    loras = [option for seed in (1, 2) for option in ("--transformer_lora_path", tmp_path / f"lora{seed}")]

    def pixels(*options: object) -> np.ndarray:
        return np.asarray(Image.open(drawn(base, tmp_path, *options) / "x.png"))

    def scales(*values: float) -> list[object]:
        return [option for value in values for option in ("--transformer_lora_scale", value)]

    assert np.array_equal(pixels(*loras, *scales(0, 0)), pixels())
    assert np.array_equal(pixels(*loras, *scales(0, 1)), pixels(*loras[2:]))
    assert not np.array_equal(pixels(*loras[2:], *scales(0.5)), pixels(*loras[2:]))
    with pytest.raises(ValueError, match="--transformer_lora_scale: 1 strengths for 2 adapters"):
        pixels(*loras, *scales(0.5))


def test_a_list_of_instructions_draws_what_is_not_there(base: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a red circle\n\na blue\u2028square\n", encoding="utf-8")
    options = [
        "--prompts",
        tmp_path / "list.txt",
        "--output_image_path",
        tmp_path / "drawn",
        "--num_images_per_prompt",
        2,
    ]
    drawn(base, tmp_path, *options)
    names = ["00001-0", "00001-1", "00003-0", "00003-1"]
    images = [tmp_path / "drawn" / "images" / f"{name}.png" for name in names]
    assert sorted((tmp_path / "drawn/images").iterdir()) == images
    before = {image: image.stat().st_mtime_ns for image in images}
    images[2].unlink()
    drawn(base, tmp_path, *options, "--batch_size", "3")
    changed = [image for image in images if image.stat().st_mtime_ns != before[image]]
    assert changed == [images[2]]
    with (tmp_path / "list.txt").open("a", encoding="utf-8") as file:
        file.write("a green triangle\n")
    with (tmp_path / "drawn/parts/0.jsonl").open("ab") as file:
        file.write(b'5\n{}\n{"key": ["x"]}\n{"key": "00001-0"}\n\xff\n' + b"[" * 100_000)
    before = {image: image.stat().st_mtime_ns for image in images}
    drawn(base, tmp_path, *options)
    assert {image: image.stat().st_mtime_ns for image in images} == before, "a longer list keeps what is drawn"
    assert (tmp_path / "drawn/images/00004-1.png").is_file()
    drawn(base, tmp_path, *options, "--enable_teacache", "--teacache_rel_l1_thresh", "1")
    assert all(image.stat().st_mtime_ns != before[image] for image in images), "a cache draws other images"


def test_instructions_of_a_jsonl(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    lines = [
        {"instruction": "a red circle", "task_type": "t2i", "score": 1},
        {"instruction": "make it blue", "input_images": ["a.png"], "key": "blue"},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [(prompt.key, prompt.task_type, prompt.input_images) for prompt in read_instructions(path)]
    assert found == [("00001", "t2i", ()), ("blue", "edit", (tmp_path / "a.png",))]
    for line, message in (
        ({"instruction": " "}, r"list\.jsonl:1: 1 problem\n.*instruction: ' ' is not allowed"),
        ({"prompt": "a"}, r"list\.jsonl:1: 1 problem\n.*instruction: is required"),
        ({"instruction": "a", "input_images": ["b.png"]}, r"list\.jsonl:1: input_images: 'b\.png': does not exist"),
    ):
        path.write_text(json.dumps(line))
        with pytest.raises(ValueError, match=message):
            read_instructions(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "list.txt", "--instruction", "a"], "--prompts and --instruction: give one of them"),
        (["--prompts", "list.txt", "--output_image_path", "a.png"], r"--output_image_path: a\.png is no folder"),
        (["--prompts", "list.csv", "--output_image_path", "a"], r"list\.csv: is no file of instructions"),
        (["--enable_teacache", "--enable_group_offload"], "this cache looks into a block that is off the GPU"),
        (["--output_image_path", "folder.png"], r"--output_image_path: folder\.png is no name of an image"),
        (["--output_image_path", "list.txt/a.png"], r"cannot be written, as .*list\.txt is no folder"),
        (["--num_inference_step", "0"], r"--num_inference_step: 0 is not allowed"),
        (["--height", "7"], r"--height: 7 is not allowed: .* multiple of 16"),
        (["--text_guidance_scale", "nan"], r"--text_guidance_scale: nan is not allowed"),
        (["--cfg_range_start", "0.9", "--cfg_range_end", "0.1"], r"--cfg_range_start and --cfg_range_end: \[0\.9"),
        (["--num_images_per_prompt", "1000000"], "--num_images_per_prompt: 1000000 is not allowed"),
        (["--transformer_lora_path", "a", "--transformer_lora_scale", "nan"], "--transformer_lora_scale: .* needs num"),
        (["--instruction", "\udcff"], "--instruction: is no text in UTF-8"),
    ],
)
def test_options_are_looked_at_before_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "list.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path / "nowhere", tmp_path, *options)


def test_an_option_that_no_value_follows_is_no_option_less() -> None:
    """As an empty variable of a shell leaves it: without its inputs an edit would be drawn from nothing."""
    names = ("--input_image_path",)
    assert _spread(["generate", "--input_image_path", "a", "b", "--seed", "1"], names) == [
        *("generate", "--input_image_path", "a", "--input_image_path", "b", "--seed", "1")
    ]
    assert _spread(["--input_image_path", "--seed", "1"], names) == ["--input_image_path", "--seed", "1"]

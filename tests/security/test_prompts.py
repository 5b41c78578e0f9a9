"""Prompts and generations that would put other people's pictures into a report, and prompts without end."""

import json
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from omnitune.cli import app
from omnitune.config import Benchmark
from omnitune.evaluation import prompts as module
from omnitune.evaluation.prompts import MAX_INSTRUCTION, Prompt, read_instructions, read_prompts
from omnitune.evaluation.results import require_own_image
from omnitune.evaluation.sample import _input_image
from omnitune.io.jsonl import MAX_BLANK_LINES
from omnitune.io.url_limits import USUAL, fetching
from omnitune.validation.heldout import HeldOutRow, read_heldout_rows

pytestmark = pytest.mark.unit


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, beside a private picture."""
    (tmp_path / "project" / "images").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "private.png")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def write(**values: object) -> None:
    row = {"key": "a", "task_type": "t2i", "instruction": "b", **values}
    Path("prompts.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8-sig")


@pytest.mark.parametrize("image", ["{}/private.png", "../private.png", "link.png"])
@pytest.mark.parametrize("key", ["input_images", "output_image"])
def test_pictures_outside_are_refused(project: Path, image: str, key: str) -> None:
    Path("link.png").symlink_to(project / "private.png")
    name = image.format(project)
    write(**({"input_images": [name], "task_type": "edit"} if key == "input_images" else {"output_image": name}))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: .*is outside.*image_root"):
        read_prompts(Benchmark(prompts="prompts.jsonl"), Path())
    assert read_prompts(Benchmark(prompts="prompts.jsonl", image_root=str(project)), Path())


@pytest.mark.parametrize("image", ["{}/private.png", "../private.png", "images/b.png", "images/a.png"])
def test_generations_name_their_own_images(project: Path, image: str) -> None:
    Path("images/a.png").symlink_to(project / "private.png")
    with pytest.raises(ValueError, match=r"which is not its own image images/a\.png"):
        require_own_image(Path(), {"key": "a", "image": image.format(project)})


def test_prompts_without_end_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(instruction="x" * (MAX_INSTRUCTION + 1))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: instruction of 'a': has 20001 characters") as error:
        read_prompts(Benchmark(prompts="prompts.jsonl"), Path())
    assert len(str(error.value)) < 300
    write(instruction="x" * (10 << 20))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: more than 1048576 bytes"):
        read_prompts(Benchmark(prompts="prompts.jsonl"), Path())
    monkeypatch.setattr(module, "MAX_PROMPTS", 1)
    Path("prompts.jsonl").write_text(
        "".join(f'{{"key": "k{k}", "task_type": "t2i", "instruction": "b"}}\n' for k in "ab")
    )
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: a benchmark has at most 1 images"):
        read_prompts(Benchmark(prompts="prompts.jsonl"), Path())


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"instruction": "a\ud800"}, r"instruction: .*holds half of a character"),
        ({"input_images": ["n" * 300], "task_type": "edit"}, r"input_images\.0: 'n+\.\. is not allowed: is too long"),
    ],
)
def test_texts_and_names_that_nothing_can_hold_are_refused(project: Path, values: dict[str, Any], problem: str) -> None:
    write(**values)
    with pytest.raises(ValueError, match=rf"(?s)prompts\.jsonl:1: .*{problem}"):
        read_prompts(Benchmark(prompts="prompts.jsonl"), Path())
    with pytest.raises(ValueError, match="is too long"):
        read_prompts(Benchmark(prompts="n" * 300), Path())


def test_inputs_of_an_instruction_are_a_list(project: Path) -> None:
    write(input_images=5)
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: 1 problem\n  - input_images: 5 is not allowed"):
        read_instructions(Path("prompts.jsonl"))


def test_a_file_of_blank_lines_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("prompts.jsonl").write_text("\n" * (MAX_BLANK_LINES + 1))
    for read in (partial(read_prompts, Benchmark(prompts="prompts.jsonl"), Path()), heldout):
        with pytest.raises(ValueError, match=rf"prompts\.jsonl:{MAX_BLANK_LINES + 1}: more than \d+ lines are blank"):
            read()
    monkeypatch.setattr(module, "MAX_PROMPTS_BYTES", 1000)
    for read in (partial(read_prompts, Benchmark(prompts="prompts.jsonl"), Path()), instructions):
        with pytest.raises(ValueError, match=r"prompts\.jsonl: has more than 1000 bytes"):
            read()


def instructions() -> list[Prompt]:
    return read_instructions(Path("prompts.jsonl"))


def heldout() -> list[HeldOutRow]:
    return read_heldout_rows(Path("prompts.jsonl"), 8)


URL_OF_IMAGE = "https://127.0.0.1/a.png?token=hunter2"


@pytest.mark.parametrize("key", ["input_images", "output_image"])
def test_urls_are_no_files(project: Path, key: str) -> None:
    """Held-out samples and prompts name files; only `generate` reads a URL, under the limits of data sets."""
    image: object = [URL_OF_IMAGE] if key == "input_images" else URL_OF_IMAGE
    write(**{"input_images": ["images/a.png"], "task_type": "edit", "output_image": "images/a.png", key: image})
    Image.new("RGB", (32, 32)).save("images/a.png")
    for read in (partial(read_prompts, Benchmark(prompts="prompts.jsonl"), Path()), heldout):
        with pytest.raises(ValueError, match=r"prompts\.jsonl:1: (?s:.*)is a URL") as error:
            read()
        assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("https://127.0.0.1/a.png", "which is not public"),
        ("https://host/a.png?accessToken=hunter2", "holds credentials"),
        ("file:///etc/passwd", "is not read"),
    ],
)
def test_generate_reads_urls_as_data_sets_are_read(place: str, message: str) -> None:
    with fetching(USUAL), pytest.raises(ValueError, match=message) as error:
        _input_image(place)
    assert "hunter2" not in str(error.value)


def test_generate_reads_from_private_networks_that_its_option_names(project: Path) -> None:
    """As other commands; an option that names none is a sentence."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(project))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        arguments = ["generate", "--model_path", "nowhere", "--input_image_path"]
        arguments.append(f"http://127.0.0.1:{server.server_port}/private.png")
        for network, message in (
            ((), "which is not public; allow it in data.urls.private_networks, or by --private_network"),
            (("--private_network", "files.lab"), "--private_network: 1 problem\n  - private_networks: "),
            (("--private_network", "127.0.0.0/8"), "--model_path: 'nowhere' is neither a path that exists"),
        ):
            done = CliRunner().invoke(app, [*arguments, *network])
            assert message in str(done.exception)
        server.shutdown()

"""Prompt lists: what is refused, and what the fingerprint of a protocol does and does not see."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import (
    image_seed,
    part_of,
    prompt_images,
    prompt_seed,
    protocol_fingerprint,
    read_prompts,
    write_protocol,
)

pytestmark = pytest.mark.unit


def write_prompts(folder: Path, rows: list[Any]) -> Benchmark:
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return Benchmark(prompts=str(folder / "prompts.jsonl"))


def row(**changes: Any) -> dict[str, Any]:
    start = {"key": "k1", "task_type": "edit", "instruction": "make it blue", "input_images": ["a.png"]}
    return {key: value for key, value in {**start, **changes}.items() if value is not ...}


def test_prompts_are_read_with_images_beside_their_file(tmp_path: Path) -> None:
    rows = [row(output_image="a.png"), "", row(key="k2", task_type="t2i", input_images=[])]
    first, second = read_prompts(write_prompts(tmp_path, rows), tmp_path)
    assert first.input_images == (tmp_path / "a.png",)
    assert first.target == tmp_path / "a.png"
    assert (second.key, second.task_type, second.target) == ("k2", "t2i", None)


def test_the_prompts_file_may_lie_beside_the_benchmark(tmp_path: Path) -> None:
    write_prompts(tmp_path, [row()])
    assert len(read_prompts(Benchmark(prompts="prompts.jsonl"), tmp_path)) == 1
    with pytest.raises(ValueError, match=r"nothing\.jsonl'?: does not exist\. Looked for nothing\.jsonl and "):
        read_prompts(Benchmark(prompts="nothing.jsonl"), tmp_path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        (row(instructions="x"), "instructions: unknown key. Did you mean 'instruction'"),
        (row(key=...), "key: is required and missing"),
        (row(key="../up"), r"key: '\.\./up' is not allowed: it names a file"),
        (row(key=7), "key: 7 is not allowed: input should be a valid string"),
        (row(key="K0"), r"key: 'K0' is that of .*prompts\.jsonl:1 already"),
        (row(category="a/b"), r"category: 'a/b' is not allowed: it names a file"),
        (row(height=32, width=32), "height: has no effect, as the result has the size of its one input"),
        (row(height=32), "height: give height and width, or neither"),
        (row(height=30, width=32), "height: 30 is not allowed: input should be a multiple of 16"),
        (row(instruction=" "), "instruction: ' ' is not allowed: needs a text"),
        (row(task_type="video"), "task_type: 'video' is not allowed: input should be 't2i', .*'in_context'"),
        (row(input_images=["b.png"]), r"'b\.png': does not exist"),
        (row(input_images="a.png"), "input_images: 'a.png' is not allowed: input should be a valid list"),
        (row(input_images=["a.png", ""]), r"input_images\.1: '' is not allowed"),
        (row(input_images=["a.png"] * 6), "6 images; task_type 'edit' takes 1 to 5"),
        (row(input_images=[]), "0 images; task_type 'edit' takes 1 to 5"),
        (row(task_type="t2i"), "1 images; task_type 't2i' takes none"),
        (row(output_image=3), "output_image: 3 is not allowed"),
        (row(output_image="b.png"), r"output_image: 'b\.png': does not exist"),
        (row(output_image=""), "output_image: '' is not allowed"),
        (row(expect=[1]), r"expect: \[1\] is not allowed: input should be a valid dictionary"),
    ],
)
def test_bad_prompts_are_refused_with_file_and_line(tmp_path: Path, bad: Any, message: str) -> None:
    benchmark = write_prompts(tmp_path, [row(key="k0"), bad])
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:2: (1 problem\n  - )?.*{message}"):
        read_prompts(benchmark, tmp_path)


def test_all_that_is_wrong_on_a_line_is_named_at_once(tmp_path: Path) -> None:
    benchmark = write_prompts(tmp_path, [row(key="k0"), row(key=..., instruction="", task_type="t2i", note="x")])
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: 3 problems\n") as error:
        read_prompts(benchmark, tmp_path)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "- key",
        "- instruction",
        "- note",
    ]


def test_a_check_needs_expectations_and_a_list_needs_prompts(tmp_path: Path) -> None:
    good = {"shape": "circle", "color": "red", "position": [0.3, 0.5], "size": 0.4, "background": [128, 128, 128]}
    wrong = {**good, "color": "rot", "background": ["grey", 0, 0], "colour": "red"}
    benchmark = write_prompts(tmp_path, [row(expect=good), row(key="b", expect=wrong)])
    with pytest.raises(ValueError) as error:
        read_prompts(benchmark.model_copy(update={"check": "demo_scene"}), tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("prompts.jsonl:2: expect, which `check: demo_scene` reads: 3 problems")
    assert lines[1].startswith("  - color: 'rot' is not allowed: input should be 'red', 'green'")
    assert lines[2].startswith("  - background.0: 'grey' is not allowed: input should be a valid number")
    assert lines[3] == "  - colour: unknown key. Did you mean 'color'?"
    benchmark = write_prompts(tmp_path, [row()])
    with pytest.raises(ValueError, match="- shape: is required and missing"):
        read_prompts(benchmark.model_copy(update={"check": "demo_scene"}), tmp_path)
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(write_prompts(tmp_path, [""]), tmp_path)


def test_parts_hold_every_prompt_once() -> None:
    prompts = list(range(11))
    parts = [part_of(prompts, part, 4) for part in range(4)]
    assert sorted(entry for part in parts for entry in part) == prompts
    assert {len(part) for part in parts} == {2, 3}
    with pytest.raises(ValueError, match="needs 0 to 3"):
        part_of(prompts, 4, 4)


def test_the_fingerprint_sees_what_decides_images_and_nothing_else(tmp_path: Path) -> None:
    benchmark = write_prompts(tmp_path, [row(output_image="a.png")])
    prompts = read_prompts(benchmark, tmp_path)
    first = protocol_fingerprint(benchmark, prompts)
    same = benchmark.model_copy(
        update={"batch_size": 7, "parts": 3, "prompts": "elsewhere.jsonl", "check": "demo_scene"}
    )
    assert protocol_fingerprint(same, prompts) == first
    for change in (
        *({"seed": 1}, {"seed": [0]}, {"num_inference_steps": 3}, {"dtype": "fp32"}, {"negative_prompt": ""}),
        *({"align_res": False}, {"images_per_prompt": 2}),
    ):
        assert protocol_fingerprint(benchmark.model_copy(update=change), prompts) != first
    for part in ({"size": (32, 64)}, {"key": "k9"}, {"line_key": "k9"}, {"instruction": "other"}):
        assert protocol_fingerprint(benchmark, [replace(prompts[0], **part)]) != first, part
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    assert protocol_fingerprint(benchmark, prompts) != first


def test_what_images_and_scores_depend_on_is_written_apart(tmp_path: Path) -> None:
    """Two files, so that another expectation draws no image anew, and neither does another number of parts."""
    expect = {"shape": "circle", "color": "red", "position": "left", "size": "small", "background": "grey"}
    benchmark = write_prompts(tmp_path, [row(expect=expect, output_image="a.png"), row(key="k2")])
    prompts = read_prompts(benchmark, tmp_path)

    def written(**changes: Any) -> tuple[bytes, bytes]:
        other, own = benchmark.model_copy(update=changes), read_prompts(benchmark, tmp_path)
        write_protocol(other, own, tmp_path / "out/protocol.json", tmp_path / "out/scoring.json")
        return (tmp_path / "out/protocol.json").read_bytes(), (tmp_path / "out/scoring.json").read_bytes()

    protocol, scoring = written()
    assert json.loads(protocol)["fingerprint"] == protocol_fingerprint(benchmark, prompts)
    assert json.loads(protocol)["settings"]["num_inference_steps"] == 50
    facts = {"key": "k1", "task_type": "edit", "category": None, "line_key": "k1", "expect": expect}
    assert json.loads(scoring)["prompts"][0] == facts
    assert str(tmp_path).encode() not in protocol + scoring
    assert written(parts=3, batch_size=2, prompts="elsewhere") == (protocol, scoring)
    images, scores = written(seed=1)
    assert images != protocol and scores == scoring
    images, scores = written(check="demo_scene")
    assert images == protocol and scores != scoring
    write_prompts(tmp_path, [row(expect={**expect, "color": "blue"}, output_image="a.png"), row(key="k2")])
    images, scores = written()
    assert images == protocol and scores != scoring
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    assert written()[0] != protocol


def test_images_of_prompts_are_named_once(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "b.png")
    rows = [row(input_images=["b.png", "a.png"], output_image="a.png"), row(key="k2", task_type="t2i", input_images=[])]
    prompts = read_prompts(write_prompts(tmp_path, rows), tmp_path)
    assert prompt_images(prompts) == [tmp_path / "b.png", tmp_path / "a.png"]


def test_each_image_of_a_prompt_is_one_with_a_seed_of_its_own(tmp_path: Path) -> None:
    benchmark = write_prompts(
        tmp_path, [row(task_type="t2i", input_images=[], category="hats", height=32, width=48), row(key="k2")]
    )

    def seeds(**keys: Any) -> dict[str, int]:
        other = benchmark.model_copy(update=keys)
        return {prompt.key: image_seed(other, prompt) for prompt in read_prompts(other, tmp_path)}

    alone, several = seeds(seed=3), seeds(seed=[3, 5], images_per_prompt=2)
    assert list(several) == ["k1-0", "k1-1", "k1-2", "k1-3", "k2-0", "k2-1", "k2-2", "k2-3"]
    assert len(set(several.values())) == 8
    assert (several["k1-0"], several["k1-2"]) == (alone["k1"], seeds(seed=5)["k1"]), "more images leave those that were"
    first = read_prompts(benchmark, tmp_path)[0]
    assert (first.task, first.size, first.line_key, first.draw) == ("hats", (48, 32), "k1", 0)


def test_keys_of_images_may_not_meet(tmp_path: Path) -> None:
    benchmark = write_prompts(tmp_path, [row(key="a"), row(key="a-1")])
    assert len(read_prompts(benchmark, tmp_path)) == 2
    assert len(read_prompts(benchmark.model_copy(update={"images_per_prompt": 2}), tmp_path)) == 4
    benchmark = write_prompts(tmp_path, [row(key="a"), row(key="A")])
    with pytest.raises(ValueError, match=r"jsonl:2: key: 'A-0' is that of .*jsonl:1 already"):
        read_prompts(benchmark.model_copy(update={"images_per_prompt": 2}), tmp_path)


def test_seeds_belong_to_prompts() -> None:
    seeds = {prompt_seed(seed, key) for seed in range(3) for key in ("a", "b")}
    assert len(seeds) == 6
    assert prompt_seed(0, "a") == prompt_seed(0, "a")
    assert all(0 <= seed < 2**63 for seed in seeds)

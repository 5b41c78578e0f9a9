"""Published formats: files of each are read as they are, what is wrong in them is named, and scorers find theirs."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from omnitune.config import Benchmark
from omnitune.config.base import check_config
from omnitune.config.choices import PROMPT_FORMATS
from omnitune.errors import ConfigError
from omnitune.evaluation.foreign import as_imported, import_prompts, source_files
from omnitune.evaluation.official import export_images
from omnitune.evaluation.prompts import Prompt, read_prompts
from omnitune.io.files import json_line, sealed, sha256_of, write_json, write_text

pytestmark = pytest.mark.unit

COUNTING = {
    "tag": "counting",
    "include": [{"class": "bench", "count": 2}],
    "exclude": [{"class": "bench", "count": 3}],
    "prompt": "a photo of two benches",
}
COLORS = {
    "tag": "colors",
    "include": [{"class": "cup", "count": 1, "color": "blue"}],
    "prompt": "a photo of a blue cup",
}
EDITS = {
    "1082": {"id": "animal/a.jpg", "prompt": "Change the shell to a smooth one.", "edit_type": "adjust"},
    "673": {"id": "style/b.png", "prompt": "Make it a woodblock print.", "edit_type": "style"},
}
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(seed: int, size: tuple[int, int] = (32, 48), form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=form)
    return content.getvalue()


def write(path: str, content: str | bytes) -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def geneval(*rows: Any) -> Benchmark:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows or (COUNTING, COLORS)]
    return Benchmark(
        prompts=write("evaluation_metadata.jsonl", "\n".join(lines)), format="geneval", images_per_prompt=4
    )


def dpg() -> Benchmark:
    write("dpg/7.txt", "A long\nprompt.\n")
    write("dpg/COCOval2014000000000042.txt", "\ufeffAnother one.")
    write("dpg/readme.md", "no prompt")
    return Benchmark(prompts="dpg", format="dpg", images_per_prompt=4)


def imgedit(**changes: Any) -> Benchmark:
    write("originals/animal/a.jpg", picture(1, form="JPEG"))
    write("originals/style/b.png", picture(2))
    write("basic_edit.json", json.dumps({**EDITS, **changes}, indent=4))
    return Benchmark(prompts="basic_edit.json", format="imgedit", image_root="originals")


def cell(content: bytes | None) -> dict[str, Any]:
    return {"bytes": content, "path": "x.png"}


def gedit_rows() -> list[dict[str, Any]]:
    """The same key in two languages, and in two tasks."""
    names = [("aa", "color_alter", "en"), ("aa", "color_alter", "cn"), ("aa", "subject-add", "en")]
    return [
        {
            "key": key,
            "task_type": task,
            "instruction": f"{task} {language}",
            "instruction_language": language,
            "input_image": cell(picture(number)),
            "Intersection_exist": True,
        }
        for number, (key, task, language) in enumerate(names)
    ]


def omnicontext_rows() -> list[dict[str, Any]]:
    return [
        {
            "key": f"k{number}",
            "task_type": task,
            "instruction": f"a {task}",
            "instruction_language": "en",
            "input_images": [cell(picture(10 * number + k, form=form)) for k, form in enumerate(forms)],
        }
        for number, (task, forms) in enumerate([("single_character", ["JPEG"]), ("multi_object", ["PNG", "WEBP"])])
    ]


def schema(rows: list[dict[str, Any]]) -> pa.Schema:
    kinds = {"input_image": CELL, "input_images": pa.list_(CELL), "Intersection_exist": pa.bool_()}
    return pa.schema([(name, kinds.get(name, pa.string())) for name in rows[0]])


def parquet(rows: list[dict[str, Any]], path: str = "data/train-00000-of-00001.parquet") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(rows)), path)
    return path


def saved(rows: list[dict[str, Any]], folder: str = "saved") -> str:
    """What save_to_disk of a data set with one split leaves."""
    write(f"{folder}/dataset_dict.json", json.dumps({"splits": ["train"]}))
    write(f"{folder}/train/state.json", "{}")
    write(f"{folder}/train/cache-123.arrow", "no table")
    for number, row in enumerate(rows):
        path = f"{folder}/train/data-{number:05d}-of-{len(rows):05d}.arrow"
        with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, schema(rows)) as stream:
            stream.write_table(pa.Table.from_pylist([row], schema=schema(rows)))
    return folder


def imported(benchmark: Benchmark) -> list[Prompt]:
    """The prompts as the workflow reads them."""
    ours = as_imported("mine", benchmark)
    import_prompts(benchmark, Path(ours.prompts))
    return read_prompts(ours, Path())


def test_geneval_is_read_line_by_line() -> None:
    prompts = imported(geneval())
    assert [prompt.key for prompt in prompts[:5]] == ["00000-0", "00000-1", "00000-2", "00000-3", "00001-0"]
    first, last = prompts[0], prompts[-1]
    assert (first.line_key, first.task_type, first.task, first.draw) == ("00000", "t2i", "counting", 0)
    assert (last.instruction, last.official, last.draw) == (COLORS["prompt"], COLORS, 3)
    assert source_files(geneval()) == [Path("evaluation_metadata.jsonl")]


def test_dpg_is_a_folder_of_texts() -> None:
    prompts = imported(dpg())
    assert {prompt.line_key: prompt.instruction for prompt in prompts} == {
        "7": "A long\nprompt.",
        "COCOval2014000000000042": "Another one.",
    }
    assert source_files(dpg()) == [Path("dpg/7.txt"), Path("dpg/COCOval2014000000000042.txt")]


def test_imgedit_has_its_originals_in_a_folder() -> None:
    first, second = imported(imgedit())
    assert (first.key, first.task_type, first.category, first.instruction) == (
        *("1082", "edit", "adjust"),
        "Change the shell to a smooth one.",
    )
    assert first.input_images[0].suffix == ".jpg"
    assert second.input_images[0].read_bytes() == Path("originals/style/b.png").read_bytes(), "byte by byte"
    assert source_files(imgedit()) == [
        *map(Path, ("basic_edit.json", "originals/animal/a.jpg", "originals/style/b.png"))
    ]


@pytest.mark.parametrize("form", [parquet, saved])
def test_gedit_is_a_table_with_images_inside(form: Any) -> None:
    benchmark = Benchmark(prompts=form(gedit_rows()), format="gedit")
    prompts = imported(benchmark)
    assert [prompt.key for prompt in prompts] == ["color_alter-en-aa", "color_alter-cn-aa", "subject-add-en-aa"]
    assert [prompt.input_images[0].read_bytes() for prompt in prompts] == [picture(number) for number in range(3)]
    assert prompts[1].official == {"key": "aa", "language": "cn"}
    english = imported(benchmark.model_copy(update={"language": "en"}))
    assert [prompt.category for prompt in english] == ["color_alter", "subject-add"]


def test_equal_images_are_kept_once() -> None:
    """However many rows have one: a small table must not fill a disk."""
    rows = [{**gedit_rows()[0], "key": f"k{number}"} for number in range(3)]
    prompts = imported(Benchmark(prompts=parquet(rows), format="gedit"))
    assert len({path for prompt in prompts for path in prompt.input_images}) == 1
    assert [path.name for path in Path("resources/benchmarks/mine/imported/inputs").iterdir()] == [
        prompts[0].input_images[0].name
    ]


@pytest.mark.parametrize("form", [parquet, saved])
def test_omnicontext_has_several_images_a_row(form: Any) -> None:
    single, several = imported(Benchmark(prompts=form(omnicontext_rows()), format="omnicontext", align_res=False))
    assert (single.key, single.task_type, single.task) == ("single_character-k0", "ic", "single_character")
    assert [path.suffix for path in several.input_images] == [".png", ".webp"]


def nested(levels: int) -> list[Any]:
    """Lists inside each other."""
    return [nested(levels - 1)] if levels > 0 else []


def test_the_deepest_line_of_geneval_is_one_of_ours() -> None:
    assert imported(geneval({**COUNTING, "include": nested(29)}))[0].official == {**COUNTING, "include": nested(29)}


def test_what_is_wrong_is_named_with_file_and_place() -> None:
    rows = gedit_rows()

    def edited(**changes: Any) -> Benchmark:
        return Benchmark(prompts=parquet([rows[0], {**rows[1], **changes}]), format="gedit")

    table = r"train-00000-of-00001\.parquet: row 2: "
    for make, message in [
        (lambda: geneval(COUNTING, "{"), r"evaluation_metadata\.jsonl:2: not valid JSON"),
        (lambda: geneval(COUNTING, {"prompt": "x"}), r"evaluation_metadata\.jsonl:2: tag: needs a text, it is missing"),
        (lambda: geneval(COUNTING, {"prompt": 3, "tag": "x"}), r":2: prompt: needs a text, found a number"),
        (lambda: geneval(COUNTING, {"prompt": "x", "tag": "../up"}), r":2: 1 problem\n  - category: '\.\./up'"),
        (lambda: geneval(COUNTING, {"prompt": "x" * 20_001, "tag": "x"}), r":2: instruction of '00001': has 20001"),
        (lambda: geneval({**COUNTING, "include": nested(30)}), r":1: nested more than 31 levels deep"),
        (lambda: geneval(""), "holds no prompts"),
        (lambda: imgedit(x=3), r"basic_edit\.json: entry 'x': needs an object, found a number"),
        (
            lambda: imgedit(x={**EDITS["673"], "id": "c.png"}),
            r"entry 'x': id: 'c\.png': does not exist below 'originals'",
        ),
        (lambda: imgedit(x={**EDITS["673"], "id": "../x.png"}), r"entry 'x': id: .*x\.png.* is outside originals"),
        (lambda: imgedit(**{"../x": EDITS["673"]}), r"entry '\.\./x': 1 problem\n  - key"),
        (lambda: edited(instruction=None), table + "instruction: needs a text, found null"),
        (lambda: edited(task_type="/etc"), table + r"2 problems\n  - key: .*\n  - category"),
        (
            lambda: edited(task_type=rows[0]["task_type"], instruction_language="en"),
            table + "key: .* is that of .*row 1",
        ),
    ]:
        write("x.png", picture(0))
        with pytest.raises(ValueError, match=message):
            source_files(make())
    for content, message in [
        (None, table + "input_image: holds no image. Save the data set with its images inside"),
        (b"no image", table + "an image inside is no image in a format that is read here"),
        (picture(0)[:500], table + "an image inside ends before the image does"),
    ]:
        with pytest.raises(ValueError, match=message):
            imported(edited(input_image=cell(content)))
    assert not Path("resources/benchmarks/mine/imported").exists(), "no half of an import"


def test_places_that_hold_no_prompts_are_named() -> None:
    os.mkfifo("pipe")
    write("dpg/a.b.txt", "x")
    write("latin/a.txt", "caf\xe9".encode("latin-1"))
    write("other.parquet", "no table")
    write("list.json", "[1]")
    pq.write_table(pa.table({"key": ["a"]}), "short.parquet")
    Path("linked").mkdir()
    Path("linked/a.txt").symlink_to("/etc/hostname")
    for form, prompts, message in [
        ("geneval", "pipe", "is no plain file"),
        ("geneval", "nowhere", "does not exist"),
        ("dpg", "other.parquet", "is no folder"),
        ("dpg", "dpg", r"a\.b\.txt: the scorer knows a prompt by its name up to the first dot"),
        ("dpg", "latin", r"a\.txt: byte 4 is not UTF-8"),
        ("dpg", "linked", r"linked/a\.txt leads to /etc/hostname, which is outside linked"),
        ("imgedit", "list.json", r"list\.json: the file must be a JSON object, found a list"),
        ("gedit", "nowhere", "does not exist"),
        ("gedit", "latin", r"holds no \.parquet and no \.arrow files"),
        ("gedit", "other.parquet", r"other\.parquet: cannot be read behind row 0: "),
        (
            "gedit",
            "short.parquet",
            r"short\.parquet: has no column task_type, instruction, instruction_language, input_image",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            source_files(Benchmark(prompts=prompts, format=form))


def test_what_no_table_or_name_should_hold_is_a_sentence() -> None:
    texts = {name: ["x"] for name in ("key", "task_type", "instruction", "instruction_language")}
    one = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
    damaged = {**texts, "instruction": pa.Array.from_buffers(pa.string(), 1, [None, one, pa.py_buffer(b"\xff\xfe")])}
    pq.write_table(pa.table({**damaged, "input_images": [[]]}), "damaged.parquet")
    pq.write_table(pa.table({**texts, "input_images": [5]}), "numbers.parquet")
    twice = pa.table([["x"]] * 6, names=[*texts, "input_images", "key"])
    with pa.OSFile("twice.arrow", "wb") as file, pa.ipc.new_stream(file, twice.schema) as stream:
        stream.write_table(twice)
    name = "n" * 300
    write("long.json", json.dumps({"1": {**EDITS["673"], "id": name}}))
    for form, prompts, message in [
        ("omnicontext", "damaged.parquet", r"damaged\.parquet: cannot be read behind row 0"),
        ("omnicontext", "numbers.parquet", r"row 1: input_images: needs a list of images, found a number"),
        ("omnicontext", "twice.arrow", r"twice\.arrow: has more than one column key"),
        ("imgedit", "long.json", r"id: 'n+\.\.': does not exist below '\.'"),
    ]:
        benchmark = Benchmark(prompts=prompts, format=form)
        with pytest.raises(ValueError, match=message):
            import_prompts(benchmark, Path("out/prompts.jsonl")) if source_files(benchmark) else None
    with pytest.raises(ConfigError, match="prompts: 'https://host/prompts' is not allowed: is a URL: download"):
        check_config({"format": "dpg", "prompts": "https://me:hunter2@host/prompts"}, Benchmark, "b.yml")
    benchmark = Benchmark(prompts=parquet(gedit_rows()), format="gedit", language="fr")
    with pytest.raises(ValueError, match="holds no prompts in language 'fr'"):
        source_files(benchmark)


def test_keys_that_do_not_fit_the_format_are_refused() -> None:
    for keys, message in [
        ({"format": "our", "export": "official"}, "has no official scorer"),
        ({"format": "dpg", "export": "official", "images_per_prompt": 2}, "reads 1 or 4 images of a prompt, not 2"),
        ({"format": "gedit", "export": "official", "seed": [1, 2]}, "reads 1 images of a prompt, not 2"),
        ({"format": "dpg", "language": "en"}, "name none"),
        ({"format": "coco"}, "input should be"),
        ({"seed": [1, 1]}, "needs seeds that differ"),
    ]:
        with pytest.raises(ValueError, match=f"(?i){message}"):
            Benchmark(prompts="x", **keys)


def drawn(benchmark: Benchmark, failed: tuple[str, ...] = ()) -> tuple[list[Prompt], Path]:
    """An evaluation that is scored: each image has a colour of its own."""
    prompts, folder = imported(benchmark), Path("experiments/x/evaluation/5/mine")
    rows = []
    for number, prompt in enumerate(prompts):
        row: dict[str, Any] = {"key": prompt.key, "image": None, "failed": "why"}
        if prompt.key not in failed:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"images/{prompt.key}.png")
            name = f"images/{prompt.key}.png"
            row = {"key": prompt.key, "image": name, "sha256": sha256_of(folder / name)}
        rows.append(sealed(row))
    text = "".join(map(json_line, rows))
    write_text(folder / "generations.jsonl", text)
    write_json(folder / "scores.json", sealed({"generations_sha256": sha256_of(folder / "generations.jsonl")}))
    return prompts, folder


def exported(benchmark: Benchmark, failed: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Each file that the scorer finds in the method's folder, which is all that is written."""
    prompts, folder = drawn(benchmark, failed)
    output = folder / "official"
    export_images(benchmark, prompts, folder, output, "x-5")
    assert [path.name for path in output.iterdir()] == ["x-5"]
    return {
        str(path.relative_to(output / "x-5")): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()
    }


def red(content: bytes, at: tuple[int, int] = (0, 0)) -> int:
    value: Any = Image.open(io.BytesIO(content)).getpixel(at)
    return int(value[0])


def test_geneval_gets_a_folder_for_each_line(caplog: pytest.LogCaptureFixture) -> None:
    files = exported(geneval())
    assert list(files) == [
        *("00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png", "00000/samples/0002.png"),
        *("00000/samples/0003.png", "00001/metadata.jsonl", "00001/samples/0000.png", "00001/samples/0001.png"),
        *("00001/samples/0002.png", "00001/samples/0003.png"),
    ]
    assert json.loads(files["00001/metadata.jsonl"]) == COLORS
    assert [red(files[f"0000{k // 4}/samples/000{k % 4}.png"]) for k in range(8)] == list(range(8))
    with caplog.at_level("WARNING"):
        files = exported(geneval(), failed=("00000-1", *(f"00001-{k}" for k in range(4))))
    assert "5 images are missing, as drawing them failed; prompts left out: 00001" in caplog.text
    assert list(files) == [f"00000/{name}" for name in ("metadata.jsonl", *(f"samples/000{k}.png" for k in (0, 2, 3)))]


def test_dpg_gets_grids_by_the_names_of_its_prompts() -> None:
    files = exported(dpg())
    assert list(files) == ["7.png", "COCOval2014000000000042.png"]
    grid = files["7.png"]
    assert Image.open(io.BytesIO(grid)).size == (32, 32)
    assert [red(grid, at) for at in ((0, 0), (16, 0), (0, 16), (16, 16))] == [0, 1, 2, 3], "cells by rows"
    assert list(exported(dpg(), failed=("7-2",))) == ["COCOval2014000000000042.png"], "no grid with a hole"
    single = dpg().model_copy(update={"images_per_prompt": 1})
    assert [red(content) for content in exported(single).values()] == [0, 1]


def test_gedit_gets_images_and_their_inputs() -> None:
    files = exported(Benchmark(prompts=parquet(gedit_rows()), format="gedit"), failed=("subject-add-en-aa",))
    folder = "fullset/color_alter"
    assert list(files) == [
        f"{folder}/{name}" for name in ("cn/aa.png", "cn/aa_SRCIMG.png", "en/aa.png", "en/aa_SRCIMG.png")
    ]
    assert [red(files[f"{folder}/{language}/aa.png"]) for language in ("en", "cn")] == [0, 1]
    source = Image.open(io.BytesIO(files[f"{folder}/cn/aa_SRCIMG.png"]))
    assert source.tobytes() == Image.open(io.BytesIO(picture(1))).tobytes()


def test_imgedit_and_omnicontext_get_images_by_key() -> None:
    assert list(exported(imgedit())) == ["1082.png", "673.png"]
    benchmark = Benchmark(prompts=parquet(omnicontext_rows()), format="omnicontext")
    assert list(exported(benchmark)) == [
        "fullset/multi_object/k1.png",
        "fullset/single_character/k0.png",
    ]


def test_names_that_lead_elsewhere_are_not_written() -> None:
    rows = omnicontext_rows()
    rows[0]["key"] = ".."
    prompts, folder = drawn(Benchmark(prompts=parquet(rows), format="omnicontext"))
    with pytest.raises(ValueError, match=r"'x-5/fullset/single_character/\.\.\.png' is no name for a file"):
        export_images(Benchmark(prompts="x", format="omnicontext"), prompts, folder, folder / "official", "x-5")
    assert not (folder / "official").exists()


def test_every_foreign_format_has_a_reader_and_a_layout() -> None:
    for entry in PROMPT_FORMATS.values():
        assert (entry.reader is None) == (entry.layout is None)
        if entry.reader:
            assert callable(entry.load_reader()) and callable(entry.load_layout())


def test_a_foreign_list_is_refused_where_ours_is_expected() -> None:
    """Without an import: a sentence, not a traceback."""
    with pytest.raises(ConfigError, match=r"(?s)evaluation_metadata\.jsonl:1: .*key: is required and missing"):
        read_prompts(geneval(), Path())

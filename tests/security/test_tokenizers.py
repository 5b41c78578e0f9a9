"""Tokenizers of strangers: steps that never end, or make text of any size, are refused before they are compiled."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from omnitune.demo.text_encoder import build_tokenizer
from omnitune.io.part_configs import SPLITTING
from omnitune.models.prompts import count_tokens, load_tokenizer
from omnitune.pretrained.files import check_parts

pytestmark = pytest.mark.unit

ENDLESS = {"Regex": "(?:[ab]+)+[^ab]"}
SPLIT = {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TWICE = [{"Sequence": {"id": "A", "type_id": 0}}] * 2


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_tokenizer().save_pretrained(folder / "processor")
    return folder


def copy_with(folder: Path, written: Path, **values: Any) -> Path:
    """A base model's folder with other values in its tokenizer.json."""
    (folder / "processor").mkdir()
    for path in (written / "processor").iterdir():
        content = path.read_text()
        if path.name == "tokenizer.json":
            content = json.dumps({**json.loads(content), **values})
        (folder / "processor" / path.name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("pre_tokenizer", SPLIT),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [SPLIT, {"type": "ByteLevel"}]}),
        ("pre_tokenizer", None),
        ("normalizer", {"type": "Replace", "pattern": ENDLESS, "content": "b"}),
        ("normalizer", {"type": "Sequence", "normalizers": [GROWING] * 60}),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1_000_000}),
        ("decoder", {"type": "Replace", "pattern": {"Regex": "(?:(?:a{1000}){1000}){1000}"}, "content": "b"}),
        ("post_processor", {"type": "TemplateProcessing", "single": TWICE, "pair": TWICE, "special_tokens": {}}),
        ("post_processor", {"type": "Sequence", "processors": []}),
        ("model", {"type": "Unigram", "vocab": []}),
        ("model", 5),
    ],
)
def test_steps_of_another_tokenizer_are_refused(tmp_path: Path, written: Path, section: str, value: Any) -> None:
    """Before any job, and by whoever loads it."""
    folder = copy_with(tmp_path, written, **{section: value})
    for read in (load_tokenizer, lambda folder: check_parts(folder, ["processor"], "model.pretrained_model_path")):
        with pytest.raises(ValueError, match=rf"tokenizer\.json: {section}\b.* is not allowed: ") as error:
            read(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


def test_the_published_steps_are_those_of_the_library(tmp_path: Path, written: Path) -> None:
    assert SPLITTING == PRETOKENIZE_REGEX
    published = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer = load_tokenizer(copy_with(tmp_path, written, post_processor=published))
    assert tokenizer("A star's end\n\n x").input_ids == load_tokenizer(written)("A star's end\n\n x").input_ids


@pytest.mark.parametrize("strategy", [{"Fixed": 10**9}, "BatchLongest"])
def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path, written: Path, strategy: Any) -> None:
    padding = {"strategy": strategy, "direction": "Right", "pad_to_multiple_of": 10**9, "pad_id": 0, "pad_type_id": 0}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    folder = copy_with(tmp_path, written, padding={**padding, "pad_token": "a"}, truncation=truncation)
    assert count_tokens(load_tokenizer(folder), "a red circle") == count_tokens(load_tokenizer(written), "a red circle")


@pytest.mark.parametrize("name", ["Own", "CLIPTokenizer", "LlamaTokenizer"])
def test_another_class_is_refused(tmp_path: Path, written: Path, name: str) -> None:
    """Each brings its own expressions and readers of files."""
    folder = copy_with(tmp_path, written)
    (folder / "processor/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    with pytest.raises(ValueError, match=rf'tokenizer_config\.json: tokenizer_class: "{name}" is not allowed'):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", [" ", " \n", "a", "'", "é", "\t\u2003"])
def test_any_text_is_split_soon(written: Path, text: str) -> None:
    """Of the length that a line of samples may have."""
    tokenizer, started = load_tokenizer(written), time.process_time()
    tokenizer(text * (400_000 // len(text)), verbose=False)
    assert time.process_time() - started < 20

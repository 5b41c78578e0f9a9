"""Tokenizers of strangers: made of their words alone; steps other than the published ones are refused."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from omnitune.demo.text_encoder import build_tokenizer
from omnitune.io.model_files.tokenizer import BYTES, SPLITTING
from omnitune.models.text.features import encode_text
from omnitune.models.text.prompts import apply_chat_template, count_tokens, load_tokenizer
from omnitune.pretrained.files import check_parts

pytestmark = pytest.mark.unit

ENDLESS = {"Regex": "(?:[ab]+)+[^ab]"}
SPLIT = {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False}
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
PUBLISHED_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
TWICE = [{"Sequence": {"id": "A", "type_id": 0}}] * 2
WORDS = {letter: number for number, letter in enumerate(sorted(BYTES))}
TEXTS = ("A red circle's\n\n x <|im_start|>user\n<|vision_start|>", "\u732b \xe9 e\u0301 \ud55c", " " * 5, "\t12345")


def template(single: list[Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}


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
        ("post_processor", template([])),
        ("post_processor", template([{"Sequence": {"id": "B", "type_id": 0}}])),
        ("post_processor", template([{"SpecialToken": {"id": "a", "type_id": 0}}])),
        ("added_tokens", [{"id": -1, "content": "x"}]),
        ("added_tokens", [{"id": 1, "content": ""}]),
        ("model", {"type": "Unigram", "vocab": []}),
        ("model", 5),
    ],
)
def test_steps_of_another_tokenizer_are_refused(tmp_path: Path, written: Path, section: str, value: Any) -> None:
    """Before any job, and by whoever loads it."""
    folder = copy_with(tmp_path, written, **{section: value})
    for read in (load_tokenizer, lambda folder: check_parts(folder, ["processor"], "model.pretrained_model_path")):
        with pytest.raises(ValueError, match=rf"tokenizer\.json: {section}\b.* is (not allowed: |missing\.)") as error:
            read(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra_special_tokens": {"messages": "x"}}, r"extra_special_tokens.* is not allowed"),
        ({"extra_special_tokens": [f"<{n}>" for n in range(600)]}, "tokens beside its words, more than 1000"),
        ({f"a{n}_token": "x" for n in range(1001)}, "tokens beside its words, more than 1000"),
        ({"image_token": "x" * 1001}, "image_token: a token has 1 to 1000 characters, and a name in small letters"),
        ({"Image_token": "x"}, "Image_token: a token has 1 to 1000 characters, and a name in small letters"),
        ({"additional_special_tokens": ["x" * 1001]}, r"additional_special_tokens.* is not allowed"),
    ],
    ids=["names", "listed", "named", "text", "name", "long"],
)
def test_tokens_beside_the_words_are_few(tmp_path: Path, written: Path, values: Any, message: str) -> None:
    """The library looks at each for each other."""
    tokens = [{"id": 10**5 + n, "content": f"<<{n}>>"} for n in range(500)]
    path = copy_with(tmp_path, written, added_tokens=tokens) / "processor/tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "WordPiece"),
        ("dropout", 0.5),
        ("continuing_subword_prefix", "##"),
        ("end_of_word_suffix", "</w>"),
        ("byte_fallback", True),
        ("ignore_merges", True),
        ("vocab", [["a", 0]]),
        ("vocab", {**WORDS, "ab": -1}),
        ("vocab", {**WORDS, "ab": "1"}),
        ("vocab", {**WORDS, "ab": 2**32}),
        ("vocab", {"a": 0}),
        ("merges", "a b"),
        ("merges", ["a"]),
        ("merges", [["a", "b", "c"]]),
        ("merges", [["a", 1]]),
        ("merges", ["a nowhere"]),
    ],
)
def test_another_way_of_merging_is_refused(tmp_path: Path, written: Path, key: str, value: Any) -> None:
    """What the library would leave out unsaid, or what would leave letters out."""
    model = json.loads((written / "processor/tokenizer.json").read_text())["model"]
    folder = copy_with(tmp_path, written, model={**model, key: value})
    with pytest.raises(
        ValueError, match=r"is not allowed: |no word for 255 of the 256 bytes|cannot be loaded \("
    ) as error:
        load_tokenizer(folder)
    assert len(str(error.value)) < 500


def test_the_published_steps_are_those_of_the_library(tmp_path: Path, written: Path) -> None:
    assert SPLITTING == PRETOKENIZE_REGEX
    tokenizer = load_tokenizer(copy_with(tmp_path, written, post_processor=PUBLISHED_BYTES))
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


def other_words(folder: Path) -> str:
    """A tokenizer.json whose expression never ends."""
    content = json.loads((folder / "processor/tokenizer.json").read_text())
    return json.dumps({**content, "pre_tokenizer": SPLIT})


@pytest.mark.parametrize("name", ["tokenizer.4.0.0.json", "../tokenizer.4.0.0.json"])
def test_a_file_in_place_of_the_one_that_is_checked_is_refused(tmp_path: Path, written: Path, name: str) -> None:
    folder = copy_with(tmp_path, written)
    (folder / "processor" / name).write_text(other_words(folder))
    config = folder / "processor/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "fast_tokenizer_files": [name]}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: fast_tokenizer_files: .* is not allowed"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model", "tokenizer.model.v3", "tiktoken.model"])
def test_words_in_another_form_are_not_read(tmp_path: Path, written: Path, name: str) -> None:
    """The library would take them, with their own expression, where tokenizer.json lacks."""
    folder = copy_with(tmp_path, written)
    (folder / "processor" / name).write_text('{"config": {"pattern": "(?:[ab]+)+[^ab]"}, "vocab": []}')
    expected = load_tokenizer(written)(TEXTS[0]).input_ids
    assert load_tokenizer(folder)(TEXTS[0]).input_ids == expected
    (folder / "processor/tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"holds no tokenizer: neither tokenizer\.json nor vocab\.json"):
        load_tokenizer(folder)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path, written: Path) -> None:
    path = copy_with(tmp_path, written) / "processor/tokenizer.json"
    path.write_text(path.read_text().rstrip()[:-1] + f', "pre_tokenizer": {json.dumps(SPLIT)}}}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read: the key 'pre_tokenizer' stands twice"):
        load_tokenizer(tmp_path)


def test_a_token_has_the_number_that_its_file_says(tmp_path: Path, written: Path) -> None:
    """The library would give it another, unsaid."""
    tokens = json.loads((written / "processor/tokenizer.json").read_text())["added_tokens"]
    folder = copy_with(tmp_path, written, added_tokens=[*tokens, {"id": 10**6, "content": "<far>"}])
    with pytest.raises(ValueError, match=r"/processor: its token '<far>' cannot have the number 1000000"):
        load_tokenizer(folder)


def test_a_chat_of_no_text_is_refused(tmp_path: Path, written: Path) -> None:
    folder = copy_with(tmp_path, written)
    (folder / "processor/chat_template.jinja").write_text("{% if false %}x{% endif %}")
    for read in (count_tokens, apply_chat_template, lambda own, text: encode_text(None, own, [text])):
        with pytest.raises(ValueError, match="chat template makes no text of an instruction"):
            read(load_tokenizer(folder), "a red circle")


def test_a_text_without_tokens_is_refused() -> None:
    """By a tokenizer that was made elsewhere."""
    tokenizer = Qwen2Tokenizer(vocab={"a": 0}, merges=[])
    with pytest.raises(ValueError, match="the tokenizer makes no tokens of 'b'"):
        encode_text(None, tokenizer, ["a", "b"], use_chat_template=False)


def published(folder: Path, written: Path) -> dict[str, Any]:
    """The files of the published layout: all that older versions of the library wrote; gives tokenizer_config.json."""
    steps = json.loads((written / "processor/tokenizer.json").read_text())
    steps["model"]["merges"] = merges = [" ".join(pair) for pair in steps["model"]["merges"]]
    steps["model"] |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    steps["model"] |= {"fuse_unk": False, "byte_fallback": False}
    steps["post_processor"] = PUBLISHED_BYTES
    processor = folder / "processor"
    processor.mkdir()
    (processor / "tokenizer.json").write_text(json.dumps(steps))
    (processor / "vocab.json").write_text(json.dumps(steps["model"]["vocab"]))
    (processor / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    sides = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    mapped = {"eos_token": {"content": "<|im_end|>", **sides}, "pad_token": {"content": "<|endoftext|>", **sides}}
    (processor / "special_tokens_map.json").write_text(json.dumps(mapped))
    added = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in steps["added_tokens"]}
    return {
        "add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "extra_special_tokens": {}, "model_max_length": 131072,
        "pad_token": "<|endoftext|>", "processor_class": "Qwen2_5_VLProcessor", "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
        "chat_template": "{{ messages[1].content }}{{ eos_token }}",
    }  # fmt: skip


def require_equal(folder: Path) -> None:
    """The tokenizer is the one that the library's own loader makes of these files, in all that is used of it."""
    own, theirs = load_tokenizer(folder), Qwen2Tokenizer.from_pretrained(folder / "processor")
    steps, expected = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (own, theirs))
    assert {**steps, "post_processor": None} == {**expected, "post_processor": None}
    for name in ("special_tokens_map", "padding_side", "truncation_side", "chat_template", "model_max_length",
                 "all_special_ids", "added_tokens_decoder", "pad_token_id", "eos_token_id", "bos_token_id",
                 "clean_up_tokenization_spaces", "model_input_names"):  # fmt: skip
        assert getattr(own, name) == getattr(theirs, name), name
    for side in ("left", "right"):
        batches = [
            dict(tokenizer(list(TEXTS), padding="longest", padding_side=side, truncation=True, max_length=12))
            for tokenizer in (own, theirs)
        ]
        assert batches[0] == batches[1]
    for text in TEXTS:
        numbers = own(text).input_ids
        assert numbers == theirs(text).input_ids
        for skipped in (True, False):
            assert own.decode(numbers, skip_special_tokens=skipped) == theirs.decode(
                numbers, skip_special_tokens=skipped
            )
    assert apply_chat_template(own, TEXTS[0]) == apply_chat_template(theirs, TEXTS[0])


def test_a_saved_tokenizer_is_as_the_library_loads_it(tmp_path: Path, written: Path) -> None:
    """The demo's, and what is saved of it again."""
    require_equal(written)
    load_tokenizer(written).save_pretrained(tmp_path / "processor")
    require_equal(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"padding_side": "left", "image_token": "<|image_pad|>"},
        {"extra_special_tokens": {"video_token": "<|video_pad|>"}, "additional_special_tokens": None},
        {"added_tokens_decoder": None, "eos_token": None},
    ],
)
def test_published_layouts_are_as_the_library_loads_them(tmp_path: Path, written: Path, change: dict[str, Any]) -> None:
    """With tokenizer.json, and with vocab.json and merges.txt alone."""
    content = {**published(tmp_path, written), **change}
    content = {name: value for name, value in content.items() if name not in change or value is not None}
    (tmp_path / "processor/tokenizer_config.json").write_text(json.dumps(content))
    require_equal(tmp_path)
    (tmp_path / "processor/tokenizer.json").unlink()
    if "added_tokens_decoder" in content:
        require_equal(tmp_path)
    else:
        with pytest.raises(ValueError, match=r"needs tokenizer\.json, as tokenizer_config\.json names no added_tokens"):
            load_tokenizer(tmp_path)


def test_of_named_chat_templates_the_default_is_taken(tmp_path: Path, written: Path) -> None:
    named = [{"name": "other", "template": "b"}, {"name": "default", "template": "a{{ messages[1].content }}"}]
    content = {**published(tmp_path, written), "chat_template": named}
    (tmp_path / "processor/tokenizer_config.json").write_text(json.dumps(content))
    assert apply_chat_template(load_tokenizer(tmp_path), "x") == "ax"


def test_the_bytes_are_those_of_the_library() -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) == BYTES

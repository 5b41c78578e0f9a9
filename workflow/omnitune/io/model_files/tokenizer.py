"""The words of a Qwen2Tokenizer, from its files; whatever would make another tokenizer of them is refused.

Imports nothing heavy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, Strict, model_validator

from omnitune.io.json_object import FETCH, JSON_LIMIT, checked, not_allowed, read_json, read_limited
from omnitune.io.model_files.part_configs import Part, read_own

SETTINGS_FILE, MAP_FILE, TEMPLATE_FILE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
STEPS_FILE, VOCABULARY_FILE, MERGES_FILE = "tokenizer.json", "vocab.json", "merges.txt"
MAX_WORDS = 1_000_000  # beyond any model; the published tokenizer has 151,643
MAX_ADDED = 1000  # the published has 22; the library looks at each for each other
# How text is split before pairs are merged. An expression of somebody else's may take for ever.
SPLITTING = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What stands for each of the 256 bytes: with these words, no text loses a letter.
BYTES = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 324))))


NAME, LONGEST = r"[a-z0-9_]+_token", 1000  # of a token that is named, and of its text
_Content = Annotated[str, Field(min_length=1, max_length=LONGEST)]


class _Token(Part):
    content: _Content
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class _NumberedToken(_Token):
    id: Annotated[int, Field(ge=0, lt=2**31)]


_Named = _Content | _Token | None
_Several = Annotated[list[_Content | _Token], Field(fail_fast=True, max_length=MAX_ADDED)]
_Names = Annotated[dict[Annotated[str, Field(pattern=f"^{NAME}$")], _Content], Field(max_length=MAX_ADDED)]
_Number = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class _Settings(Part):
    """Of these classes the first is loaded; the last two are any tokenizer that its files describe."""

    model_config = ConfigDict(extra="allow")  # names of further tokens, such as `image_token`

    processor_class: str | None = None  # for who reads what is saved
    tokenizer_class: (
        Literal["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"] | None
    ) = None
    chat_template: str | list[dict[str, str]] | dict[str, str] | None = None
    model_max_length: Annotated[int | float, Field(gt=0)] | None = None
    padding_side: Literal["left", "right"] = "right"
    truncation_side: Literal["right"] = "right"
    clean_up_tokenization_spaces: bool = False
    split_special_tokens: Literal[False] = False
    add_prefix_space: Literal[False] | None = None
    add_bos_token: Literal[False] = False
    add_eos_token: Literal[False] = False
    added_tokens_decoder: Annotated[dict[_Number, _Token], Field(max_length=MAX_ADDED)] | None = None
    additional_special_tokens: _Several | None = None
    extra_special_tokens: _Several | _Names | None = None
    bos_token: _Named = None
    eos_token: _Named = None
    pad_token: _Content | _Token = "<|endoftext|>"  # texts of a batch are padded
    unk_token: _Named = None
    sep_token: _Named = None
    cls_token: _Named = None
    mask_token: _Named = None

    @model_validator(mode="after")
    def _tokens_are_named(self) -> Self:
        for name, text in self.named.items():
            if not (re.fullmatch(NAME, name) and 0 < len(text) <= LONGEST):
                raise ValueError(f"{name[:80]}: a token has 1 to {LONGEST} characters, and a name in small letters")
        return self

    @property
    def named(self) -> dict[str, str]:
        """Tokens beside those above, by their names."""
        extra = self.model_extra or {}
        return {name: text for name, text in extra.items() if name.endswith("_token") and isinstance(text, str)}


SPECIAL = {f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")}
PASSED_ON = {
    *SPECIAL,
    "processor_class",
    "model_max_length",
    "padding_side",
    "clean_up_tokenization_spaces",
    "add_prefix_space",
}


class _Pattern(Part):
    Regex: Literal[SPLITTING]  # type: ignore[valid-type]


class _Split(Part):
    type: Literal["Split"]
    pattern: _Pattern
    behavior: Literal["Isolated"]
    invert: Literal[False] = False


class _Bytes(Part):
    type: Literal["ByteLevel"]


class _BytesOfWords(_Bytes):
    add_prefix_space: Literal[False]
    use_regex: Literal[False]


class _Splitting(Part):
    type: Literal["Sequence"]
    pretokenizers: Annotated[tuple[_Split, _BytesOfWords], Strict(False)]


class _Text(Part):
    id: Literal["A"]


class _Piece(Part):
    Sequence: _Text


class _NothingAround(Part):
    """A text's tokens as they are; others put more before and behind them, in any number, or leave them out."""

    type: Literal["TemplateProcessing"]
    single: Annotated[list[_Piece], Field(fail_fast=True, min_length=1, max_length=1)]


class _Normal(Part):
    type: Literal["NFC"]


class _Merging(Part):
    """Pairs that are merged, and no other way; each word and pair is looked at by _words and _pairs."""

    type: Literal["BPE"] = "BPE"
    vocab: dict[str, Any]
    merges: list[Any]
    dropout: None = None
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    byte_fallback: Literal[False] = False
    ignore_merges: Literal[False] = False


class _Steps(Part):
    """What Qwen2Tokenizer does whatever stands here; of anything else that is asked for it would do nothing, unsaid."""

    normalizer: _Normal
    pre_tokenizer: _Splitting
    model: _Merging
    added_tokens: Annotated[list[_NumberedToken], Field(fail_fast=True, max_length=MAX_ADDED)] = []
    post_processor: Annotated[_Bytes | _NothingAround, Field(discriminator="type")] | None = None
    decoder: _Bytes | None = None


@dataclass(frozen=True)
class TokenizerFiles:
    """What a Qwen2Tokenizer is made of. A token is its text, or the values of an AddedToken.

    Attributes:
        vocab: the number of each word, all bytes among them.
        merges: pairs of words that become one, the first before the others.
        added: by number, tokens that are found in a text before it is split.
        settings: other arguments: tokens by what they are for, chat template, sides, length.
    """

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[int, dict[str, Any]]
    settings: dict[str, Any]


def tokenizer_folder(pipeline: Path) -> Path:
    """Where a pipeline's tokenizer is: in processor/, or in mllm/, where it lies there."""
    processor = pipeline / "processor"
    return processor if (processor / SETTINGS_FILE).is_file() else pipeline / "mllm"


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """A tokenizer in the published layout: tokenizer.json, or vocab.json with merges.txt, and tokenizer_config.json.

    Raises:
        ValueError: where there are no words; for a file that is no JSON or has a key twice; for the first value that
            would make it something else than a Qwen2Tokenizer, with file and key.
    """
    settings = _settings(folder)
    added = {int(number): _values(token) for number, token in (settings.added_tokens_decoder or {}).items()}
    words, pairs = folder / VOCABULARY_FILE, folder / MERGES_FILE
    if (folder / STEPS_FILE).is_file():
        words = pairs = folder / STEPS_FILE
        steps = checked(words, read_json(words), _Steps)
        added = {token.id: _values(token) for token in steps.added_tokens} | added
        vocab, merges = steps.model.vocab, steps.model.merges
    elif not (words.is_file() and pairs.is_file()):
        raise ValueError(
            f"{folder}: holds no tokenizer: neither {STEPS_FILE} nor {VOCABULARY_FILE} and {MERGES_FILE}. Name a "
            "pipeline folder with processor/."
        )
    elif settings.added_tokens_decoder is None:
        raise ValueError(f"{folder}: needs {STEPS_FILE}, as {SETTINGS_FILE} names no added_tokens_decoder.")
    else:
        vocab, merges = read_json(words), _lines(pairs)
    passed = _passed_on(folder, settings)
    named = len(added) + len(passed["extra_special_tokens"]) + len(passed.get("model_specific_special_tokens", {}))
    if named > MAX_ADDED:
        raise ValueError(f"{folder}: has {named} tokens beside its words, more than {MAX_ADDED}. {FETCH}")
    return TokenizerFiles(_words(words, vocab), _pairs(pairs, merges), added, passed)


def _settings(folder: Path) -> _Settings:
    """tokenizer_config.json; where it does not number its tokens, special_tokens_map.json has the last word."""
    path, mapped = folder / SETTINGS_FILE, folder / MAP_FILE
    content = read_own(path) if path.is_file() else {}
    found = checked(path, content, _Settings)
    if found.added_tokens_decoder is None and mapped.is_file():
        named = read_own(mapped)
        checked(mapped, named, _Settings)
        return checked(path, content | named, _Settings)
    return found


def _values(token: _Token) -> dict[str, Any]:
    """Of an AddedToken; its class has defaults for what is not said."""
    return token.model_dump(include=set(_Token.model_fields) - {"class_name"}, exclude_unset=True)


def _passed_on(folder: Path, settings: _Settings) -> dict[str, Any]:
    def value(given: Any) -> Any:
        return _values(given) if isinstance(given, _Token) else given

    passed = {name: value(getattr(settings, name)) for name in sorted(PASSED_ON & settings.model_fields_set)}
    specific = settings.named
    extra, older = settings.extra_special_tokens or [], settings.additional_special_tokens or []
    if isinstance(extra, dict):
        specific, extra = specific | extra, []
    passed["extra_special_tokens"] = [value(token) for token in extra or older]
    template = folder / TEMPLATE_FILE
    given = _text(template) if template.is_file() else settings.chat_template
    if isinstance(given, list):
        given = {entry.get("name", ""): entry.get("template", "") for entry in given}
    passed["chat_template"] = given.get("default") if isinstance(given, dict) else given
    return passed | ({"model_specific_special_tokens": specific} if specific else {})


def _text(path: Path) -> str:
    try:
        return read_limited(path, JSON_LIMIT).decode("utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}). {FETCH}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: cannot be read: it is no text in UTF-8 ({error.reason}). {FETCH}") from None


def _lines(path: Path) -> list[str]:
    """Of merges.txt; the first may name a version."""
    return [line for line in _text(path).replace("\r\n", "\n").split("\n") if line and not line.startswith("#version")]


def _words(path: Path, vocab: Mapping[str, Any]) -> dict[str, int]:
    if len(vocab) > MAX_WORDS:
        raise ValueError(f"{path}: has {len(vocab)} words, more than {MAX_WORDS}. {FETCH}")
    for word, number in vocab.items():
        if type(number) is not int or not 0 <= number < 2**31:
            raise not_allowed(path, f"the word {word[:80]!r}", number, "a word has a number")
    lost = len(BYTES - vocab.keys())
    if lost:
        raise ValueError(f"{path}: has no word for {lost} of the 256 bytes, and would leave them out. {FETCH}")
    return dict(vocab)


def _pairs(path: Path, merges: Sequence[Any]) -> list[tuple[str, str]]:
    if len(merges) > MAX_WORDS:
        raise ValueError(f"{path}: has {len(merges)} merges, more than {MAX_WORDS}. {FETCH}")
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise not_allowed(path, "merges", merge, "a merge has two words")
        pairs.append((parts[0], parts[1]))
    return pairs

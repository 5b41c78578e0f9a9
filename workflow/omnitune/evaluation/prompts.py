"""Prompt lists of benchmarks: read, checked and fingerprinted, so that two evaluations can be told to be the same."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from PIL import Image
from pydantic import Field, field_validator, model_validator

from omnitune.config import Benchmark
from omnitune.config.affects import keys_affecting
from omnitune.config.base import PathText, Section, check_config
from omnitune.config.choices import CHECKS, OneOf
from omnitune.errors import Refused
from omnitune.images.prepare import read_rgb
from omnitune.io.files import is_plain_file, lock_folder, sha256_of, write_json
from omnitune.io.jsonl import read_objects
from omnitune.io.places import require_below
from omnitune.models.text.prompts import DEFAULT_NEGATIVE_PROMPT
from omnitune.validation.row import MAX_INPUT_IMAGES, TASK_TYPES

ImagePath = Annotated[PathText, Field(min_length=1)]
MAX_PROMPTS = 100_000
MAX_PROMPTS_BYTES = 256_000_000
MAX_INSTRUCTION = 20_000  # characters; the text encoder reads about a thousand tokens
MAX_SIDE = 16_384  # pixels; more than any of the model's position tables has
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")

ItemT = TypeVar("ItemT")


class PromptLine(Section):
    """What stands on a line of a prompt list.

    Attributes:
        key: names the image's file.
        task_type: as published, or its short name.
        instruction: what the model is asked.
        input_images: paths of the references: none for text to image, else 1 to MAX_INPUT_IMAGES.
        output_image: path of the target, if there is one.
        category: a name of one's own, by which scores are told apart in place of the task type.
        height, width: of the image in pixels, both or none; the benchmark's otherwise.
        expect: the known scene, in the values that the benchmark's check reads.
        official: what the layout of another format takes from it; an import writes it.
    """

    key: str
    task_type: Annotated[str, OneOf(TASK_TYPES)]
    instruction: str
    input_images: list[ImagePath] | None = None
    output_image: ImagePath | None = None
    category: str | None = None
    height: Annotated[int, Field(ge=16, le=MAX_SIDE, multiple_of=16)] | None = None
    width: Annotated[int, Field(ge=16, le=MAX_SIDE, multiple_of=16)] | None = None
    expect: dict[str, Any] | None = None
    official: dict[str, Any] | None = None

    @field_validator("key", "category")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name is not None and not SAFE_KEY.fullmatch(name):
            raise ValueError("it names a file; take letters, digits, `_`, `.` and `-`, at most 120, no sign first")
        return name

    @model_validator(mode="after")
    def _has_two_sides(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height: give height and width, or neither")
        return self

    @field_validator("instruction")
    @classmethod
    def _says_something(cls, instruction: str) -> str:
        if not instruction.strip():
            raise ValueError("needs a text")
        if any("\ud800" <= sign <= "\udfff" for sign in instruction):
            raise ValueError("holds half of a character (\\ud800 to \\udfff), which is no text")
        return instruction

    @model_validator(mode="after")
    def _images_fit_the_task(self) -> Self:
        number, is_t2i = len(self.input_images or ()), TASK_TYPES[self.task_type] == "t2i"
        if number > MAX_INPUT_IMAGES or is_t2i == bool(number):
            wanted = "none" if is_t2i else f"1 to {MAX_INPUT_IMAGES}"
            raise ValueError(f"input_images: {number} images; task_type {self.task_type!r} takes {wanted}")
        return self


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark; of several images of a line, each is a prompt.

    Attributes:
        key: unique; the image's file name.
        task_type: t2i, edit or ic.
        instruction: what the model is asked.
        input_images: paths of the references.
        target: path of the image that the result is compared with, if there is one.
        expect: the known scene, for the benchmark's check.
        category: by which scores are told apart in place of the task type, if there is one.
        size: (width, height) of the image in pixels, where the line says it.
        official: what the layout of the benchmark's format takes from it.
        line_key: the key on its line, which all images of the line share.
        draw: which of these it is, from 0.
    """

    key: str
    task_type: str
    instruction: str
    input_images: tuple[Path, ...] = ()
    target: Path | None = None
    expect: dict[str, Any] | None = None
    category: str | None = None
    size: tuple[int, int] | None = None
    official: dict[str, Any] | None = None
    line_key: str = ""
    draw: int = 0

    def __post_init__(self) -> None:
        if not self.line_key:
            object.__setattr__(self, "line_key", self.key)

    @property
    def task(self) -> str:
        """By what scores are told apart."""
        return self.category or self.task_type


def read_prompts(benchmark: Benchmark, base_dir: Path) -> list[Prompt]:
    """Reads and checks a benchmark's prompts.

    Args:
        benchmark: names the .jsonl file; a relative path is taken from the working directory, and if nothing is there,
            from `base_dir`. Image paths are taken from the .jsonl's folder, and if nothing is there, from the working
            directory.
        base_dir: folder of the benchmark file.

    Raises:
        ValueError: with file, line, key and value of all that is wrong on a line: no JSON, unknown or missing keys,
            values that are not allowed; a repeated key, a missing file or image.
    """
    path = _find(benchmark.prompts, (Path(), base_dir), f"prompts: {benchmark.prompts!r}")
    _require_size(path)
    prompts: list[Prompt] = []
    rows = ((f"{path}:{number}", content) for number, content in read_objects(path))
    for where, line in checked_lines(rows, benchmark.draws):
        prompt = _prompt(line, where, path.parent)
        _require_below(prompt, benchmark, path.parent, where)
        if prompt.size and benchmark.align_res and len(prompt.input_images) == 1:
            raise ValueError(
                f"{where}: height: has no effect, as the result has the size of its one input; set `align_res: false` "
                "in the benchmark, or take height and width out."
            )
        if benchmark.check:
            model = CHECKS[benchmark.check].load_expectation()
            check_config(prompt.expect or {}, model, f"{where}: expect, which `check: {benchmark.check}` reads")
        prompts += [replace(prompt, key=key, draw=draw) for draw, key in enumerate(_keys(line.key, benchmark.draws))]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts.")
    return prompts


def _require_size(path: Path) -> None:
    if path.stat().st_size > MAX_PROMPTS_BYTES:
        raise ValueError(f"{path}: has more than {MAX_PROMPTS_BYTES} bytes. Take prompts out of the file.")


def checked_lines(rows: Iterable[tuple[str, dict[str, Any]]], draws: int) -> Iterator[tuple[str, PromptLine]]:
    """The lines of a prompt list, with where each stands; ValueError for what is wrong on one, or between them.

    Args:
        rows: where each stands, and what it holds.
        draws: how many images there are of each.
    """
    seen: dict[str, str] = {}
    for number, (where, content) in enumerate(rows, start=1):
        if number * draws > MAX_PROMPTS:
            raise ValueError(f"{where}: a benchmark has at most {MAX_PROMPTS} images. Take prompts out.")
        line = _checked_line(content, where)
        for key in _keys(line.key, draws):
            # case is no difference to some file systems
            earlier = seen.setdefault(key.casefold(), where)
            if earlier != where:
                raise ValueError(f"{where}: key: {key!r} is that of {earlier} already; keys must be unique.")
        yield where, line


def _keys(key: str, draws: int) -> list[str]:
    """The keys of all images of a line."""
    return [key] if draws == 1 else [f"{key}-{draw}" for draw in range(draws)]


def read_instructions(path: Path, draws: int = 1) -> list[Prompt]:
    """Reads instructions that are to be drawn: a .txt with one on each line, or a .jsonl.

    Args:
        path: of the file. A .jsonl has an `instruction` on each line and may have `input_images` (taken from the file's
            folder, and if nothing is there, from the working directory) and a `key` that names the image's file; other
            keys, as those of prompts and samples, are passed over. Without a key the line's number is it.
        draws: how many images there are of each.

    Raises:
        ValueError: with file and line, for what is none of these.
    """
    if path.suffix not in (".txt", ".jsonl") or not path.is_file():
        raise ValueError(f"{path}: is no file of instructions; name a .txt or a .jsonl that exists.")
    _require_size(path)
    prompts: list[Prompt] = []
    for where, line in checked_lines(_instruction_lines(path), draws):
        prompt = _prompt(line, where, path.parent)
        prompts += [replace(prompt, key=key, draw=draw) for draw, key in enumerate(_keys(line.key, draws))]
    if not prompts:
        raise ValueError(f"{path}: holds no instructions.")
    return prompts


def _instruction_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each instruction stands, and the line of a prompt list that it is."""
    lines = read_objects(path) if path.suffix == ".jsonl" else _text_lines(path)
    for number, content in lines:
        images = content.get("input_images") or []
        task = "t2i" if not images else "ic" if isinstance(images, list) and len(images) > 1 else "edit"
        known: dict[str, Any] = {
            name: content[name] for name in ("key", "instruction", "input_images") if name in content
        }
        yield f"{path}:{number}", {"key": f"{number:05d}", **known, "task_type": task}


def _text_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a text file that are not blank, by their numbers as editors count them."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, {"instruction": line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as UTF-8 text ({error}).") from None


def _checked_line(content: dict[str, Any], where: str) -> PromptLine:
    instruction = content.get("instruction")
    if isinstance(instruction, str) and len(instruction) > MAX_INSTRUCTION:  # said without repeating it
        raise ValueError(
            f"{where}: instruction of {str(content.get('key'))[:120]!r}: has {len(instruction)} characters; at most "
            f"{MAX_INSTRUCTION} are allowed. Shorten it."
        )
    return check_config(content, PromptLine, where)


def _require_below(prompt: Prompt, benchmark: Benchmark, folder: Path, where: str) -> None:
    """Raises ValueError for an image outside the roots: the report, which others read, would show it."""
    roots = [Path(), folder] if benchmark.image_root is None else [Path(benchmark.image_root)]
    for image in prompt_images([prompt]):
        fix = "If the report may show it, name its folder in the benchmark's image_root"
        require_below(image, roots, where, fix)


def part_of(prompts: Sequence[ItemT], part: int, parts: int) -> list[ItemT]:
    """Part 0 .. parts - 1 of the prompts; every parts-th one, so that long and short tasks spread over the parts."""
    if not 0 <= part < parts:
        raise ValueError(f"part: {part} is not allowed: needs 0 to {parts - 1}")
    return list(prompts[part::parts])


def protocol_fingerprint(benchmark: Benchmark, prompts: Sequence[Prompt]) -> str:
    """Hex sha256 of all that decides images and losses, the weights apart: settings, prompts and their images' content.

    How the work is cut (batch_size, parts) and where the files lie has no part in it.
    """
    content = json.dumps(protocol_of(benchmark, prompts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def protocol_of(benchmark: Benchmark, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the fingerprint is of: settings, and prompts with the hashes of their images."""
    settings = {**keys_affecting(benchmark, "images"), "negative_prompt": negative_prompt(benchmark)}
    rows = [
        {
            "key": prompt.key,
            "instruction": prompt.instruction,
            "input_images": [sha256_of(image) for image in prompt.input_images],
            "target": sha256_of(prompt.target) if prompt.target else None,
            "size": prompt.size,
            "seed": image_seed(benchmark, prompt),
        }
        for prompt in prompts
    ]
    return {"settings": settings, "prompts": rows}


def write_protocol(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    protocol: Path,
    scoring: Path,
    models: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a benchmark has been read as: what decides images and losses, and what scores depend on beside them.

    Args:
        benchmark, prompts: what was read.
        protocol, scoring: the two files.
        models: which there are of those that measures need, from `models_read`.
    """
    content = protocol_of(benchmark, prompts)
    names = ("key", "task_type", "category", "line_key", "expect")
    facts = [{name: getattr(prompt, name) for name in names} for prompt in prompts]
    with lock_folder(protocol.parent):
        write_json(protocol, {"fingerprint": protocol_fingerprint(benchmark, prompts), **content})
        write_json(scoring, {**keys_affecting(benchmark, "scores"), "models": models or {}, "prompts": facts})


def prompts_hash(prompts: Sequence[Prompt]) -> str:
    """Hex sha256 of what the lines of a prompt list say, their images by name."""
    content = [{**asdict(prompt), "input_images": [str(path) for path in prompt.input_images]} for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def prompt_images(prompts: Sequence[Prompt]) -> list[Path]:
    """All images that prompts name, each once."""
    images = [image for prompt in prompts for image in (*prompt.input_images, prompt.target) if image]
    return list(dict.fromkeys(images))


def negative_prompt(benchmark: Benchmark) -> str:
    """The negative prompt that a benchmark means."""
    return DEFAULT_NEGATIVE_PROMPT if benchmark.negative_prompt is None else benchmark.negative_prompt


def prompt_seed(seed: int, key: str) -> int:
    """A prompt's own seed, 63 bits, from the benchmark's seed and its key: independent of batches, parts and order."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") >> 1


def image_seed(benchmark: Benchmark, prompt: Prompt, use: str = "") -> int:
    """The seed of an image's starting noise; with `use` that of something else that is drawn for it.

    The first image with a seed is the same however many there are of a prompt, and however many seeds.
    """
    seed, image = divmod(prompt.draw, benchmark.images_per_prompt)
    name = f"{prompt.line_key}#{image}" if image else prompt.line_key  # no key has this sign
    return prompt_seed(benchmark.seeds[seed], name + use)


def open_image(path: Path | str) -> Image.Image:
    """An image upright, in RGB and sRGB; raises ValueError where validation would refuse the file or URL."""
    try:
        return read_rgb(path)
    except Refused as error:
        raise ValueError(f"{path}: cannot be read as an image: {error.message}.") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}.") from None


def _find(name: str, folders: Sequence[Path], where: str) -> Path:
    tried = list(dict.fromkeys(folder / name for folder in folders))
    for path in tried:
        if is_plain_file(path):
            return path
    raise ValueError(f"{where}: does not exist. Looked for {' and '.join(map(str, tried))}.")


def _prompt(line: PromptLine, where: str, folder: Path) -> Prompt:
    """The prompt that a line describes, its images found; raises ValueError where one is not there."""
    folders, target = (folder, Path()), line.output_image
    return Prompt(
        key=line.key,
        task_type=TASK_TYPES[line.task_type],
        instruction=line.instruction,
        input_images=tuple(
            _find(name, folders, f"{where}: input_images: {name!r}") for name in line.input_images or ()
        ),
        target=_find(target, folders, f"{where}: output_image: {target!r}") if target else None,
        expect=line.expect,
        category=line.category,
        size=(line.width, line.height) if line.width and line.height else None,
        official=line.official,
        line_key=line.key,
    )

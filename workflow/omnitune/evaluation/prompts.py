"""Prompt lists of benchmarks: read, checked and fingerprinted, so that two evaluations can be told to be the same."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from omnitune.config import Benchmark
from omnitune.config.affects import keys_affecting
from omnitune.images.resize import to_rgb
from omnitune.io.files import sha256_of, write_json
from omnitune.io.lines import read_objects
from omnitune.models.prompts import DEFAULT_NEGATIVE_PROMPT
from omnitune.validation.row import MAX_INPUT_IMAGES, TASK_TYPES

ALLOWED_KEYS = ("key", "task_type", "instruction", "input_images", "output_image", "expect")
EXPECT_KEYS = ("shape", "color", "position", "size", "background")
SAFE_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a benchmark.

    Attributes:
        key: unique; the image's file name.
        task_type: t2i, edit or ic.
        instruction: what the model is asked.
        input_images: paths of the references.
        target: path of the image that the result is compared with, if there is one.
        expect: the known scene, for the benchmark's check.
    """

    key: str
    task_type: str
    instruction: str
    input_images: tuple[Path, ...] = ()
    target: Path | None = None
    expect: dict[str, Any] | None = None


def read_prompts(benchmark: Benchmark, base_dir: Path) -> list[Prompt]:
    """Reads and checks a benchmark's prompts.

    Args:
        benchmark: names the .jsonl file; a relative path is taken from the working directory, and if nothing is there,
            from `base_dir`. Image paths are taken from the .jsonl's folder, and if nothing is there, from the working directory.
        base_dir: folder of the benchmark file.

    Raises:
        ValueError: with file, line and what is wrong: missing file, bad line, unknown key, repeated key, missing image.
    """
    path = _find(benchmark.prompts, (Path(), base_dir), f"benchmark: prompts: {benchmark.prompts!r}")
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, content in read_objects(path):
        where = f"{path}:{number}"
        prompt = _prompt(content, where, path.parent)
        # case is no difference to some file systems
        earlier = seen.setdefault(prompt.key.casefold(), number)
        if earlier != number:
            raise ValueError(f"{where}: key: {prompt.key!r} is that of line {earlier} already; keys must be unique.")
        if benchmark.check == "demo_scene":
            _require_expect(prompt, where)
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: holds no prompts.")
    return prompts


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
        }
        for prompt in prompts
    ]
    return {"settings": settings, "prompts": rows}


def write_protocol(benchmark: Benchmark, prompts: Sequence[Prompt], protocol: Path, scoring: Path) -> None:
    """Writes what a benchmark has been read as: all that decides images and losses, and what scores depend on beside them."""
    content = protocol_of(benchmark, prompts)
    write_json(protocol, {"fingerprint": protocol_fingerprint(benchmark, prompts), **content})
    facts = [{"key": prompt.key, "task_type": prompt.task_type, "expect": prompt.expect} for prompt in prompts]
    write_json(scoring, {**keys_affecting(benchmark, "scores"), "prompts": facts})


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


def open_image(path: Path) -> Image.Image:
    """An image upright and in RGB; raises ValueError where the file cannot be read as one."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be read as an image: {error}") from None


def _find(name: str, folders: Sequence[Path], where: str) -> Path:
    tried = list(dict.fromkeys(folder / name for folder in folders))
    for path in tried:
        if path.is_file():
            return path
    raise ValueError(f"{where}: does not exist. Looked for {' and '.join(map(str, tried))}.")


def _prompt(content: dict[str, Any], where: str, folder: Path) -> Prompt:
    unknown = sorted(content.keys() - set(ALLOWED_KEYS))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}. Known keys: {', '.join(ALLOWED_KEYS)}.")
    key = _text(content, "key", where)
    if not SAFE_KEY.fullmatch(key):
        raise ValueError(
            f"{where}: key: {key!r} is not allowed: it names a file. Letters, digits, `_`, `.`, `-`, at most 120."
        )
    task_type = TASK_TYPES.get(_text(content, "task_type", where))
    if task_type is None:
        raise ValueError(f"{where}: task_type: {content['task_type']!r} is not known; known: {', '.join(TASK_TYPES)}.")
    inputs = content.get("input_images") or []
    if not isinstance(inputs, list) or not all(isinstance(entry, str) and entry for entry in inputs):
        raise ValueError(f"{where}: input_images: {inputs!r} is not allowed: needs a list of paths.")
    if len(inputs) > MAX_INPUT_IMAGES or (task_type == "t2i") == bool(inputs):
        wanted = "none" if task_type == "t2i" else f"1 to {MAX_INPUT_IMAGES}"
        raise ValueError(f"{where}: input_images: {len(inputs)} images; task_type {task_type!r} takes {wanted}.")
    target = content.get("output_image")
    if target is not None and (not isinstance(target, str) or not target):
        raise ValueError(f"{where}: output_image: {target!r} is not allowed: needs a path, or leave the key out.")
    expect = content.get("expect")
    if expect is not None and not isinstance(expect, dict):
        raise ValueError(f"{where}: expect: {expect!r} is not allowed: needs an object.")
    folders = (folder, Path())
    images = tuple(_find(name, folders, f"{where}: input_images: {name!r}") for name in inputs)
    return Prompt(
        key=key,
        task_type=task_type,
        instruction=_text(content, "instruction", where),
        input_images=images,
        target=_find(target, folders, f"{where}: output_image: {target!r}") if target else None,
        expect=expect,
    )


def _text(content: dict[str, Any], key: str, where: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        problem = "is required and missing" if value is None else f"{value!r} is not allowed: needs a text"
        raise ValueError(f"{where}: {key}: {problem}.")
    return value


def _require_expect(prompt: Prompt, where: str) -> None:
    missing = [key for key in EXPECT_KEYS if key not in (prompt.expect or {})]
    if missing:
        raise ValueError(
            f"{where}: expect: lacks {', '.join(missing)}, which `check: demo_scene` needs. Add them or set check: null."
        )

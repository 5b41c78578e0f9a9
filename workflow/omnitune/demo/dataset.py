"""Write the demo data set: images in many formats and the .jsonl files that name them, all from one seed.

Three tasks are what the base model knows: text to image, edit (one reference: recolour or move the shape) and in
context (two references). Two are new to it: captions of a `star`, a shape that no other task has, which the experiment
`demo` teaches, and `background` (one reference: repaint the background), which `demo_lora` teaches. Every task also has
a held-out set with the geometry that `omnitune.demo.check` compares with; none of its scenes occurs in training with
the same instruction. `known` is the three tasks of the base in one file, of each the first rows: so that they are one
source for a training that must not lose them, and one benchmark.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from omnitune.demo.broken import BROKEN_ROWS, break_rows
from omnitune.demo.expectation import expectation
from omnitune.demo.scenes import (
    BACKGROUND_COLOURS,
    PLACES,
    SHAPE_COLOURS,
    SHAPES,
    Scene,
    random_scene,
    render,
    render_with_hole,
)
from omnitune.io.files import atomic_folder

__all__ = ["BROKEN_ROWS", "COUNTS", "HELDOUT_COUNT", "drafts_of", "draw_drafts", "part_of", "write_dataset"]

COUNTS = {"t2i": 320, "edit": 320, "in_context": 160, "star": 240, "background": 240}  # sound training samples
HELDOUT_COUNT = 42  # per task; a third of them is a whole number
KNOWN = "known"  # of all that the base knows
KNOWN_ROWS = 160  # of each task, broken ones among them
BASE_TASKS = ("t2i", "edit", "in_context")  # what the base model is trained on
NEW_SHAPE = "star"
PARTS = ("heldout", "heldout", "choosing", *["training"] * 9)  # of twelve identities
TASK_TYPES = {"t2i": "t2i", "star": "t2i", "edit": "edit", "in_context": "ic", "background": "edit"}
VERBS = ("portrays", "depicts", "captures", "highlights", "shows")

# Raw sizes in pixels: seven samples in ten are square, so that most batches are of one shape.
SQUARES = (96, 100, 112, 128, 144, 160)
OBLONGS = ((128, 96), (160, 120), (144, 108), (96, 128), (120, 160), (108, 144), (160, 96), (140, 84))
EXIF_ORIENTATION = 0x0112
ROTATE_TO_SHOW = 6  # EXIF: turn the stored pixels a quarter clockwise to see the picture


@dataclass(frozen=True)
class Draft:
    """A sample before it is drawn: the scenes of its inputs and of its output, all of one size in pixels."""

    instruction: str
    inputs: tuple[Scene, ...]
    output: Scene
    size: tuple[int, int]

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for two samples that ask for the same, whatever the jitter and the wording of a caption."""
        words = self.instruction if self.inputs else ""
        return (words, *(scene.layout for scene in self.inputs), self.output.layout)


def _random_size(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels."""
    if rng.random() < 0.7:
        side = rng.choice(SQUARES)
        return side, side
    return rng.choice(OBLONGS)


def _other(rng: random.Random, choices: Any, current: str) -> str:
    """One of the choices, but not the current one."""
    return rng.choice([choice for choice in choices if choice != current])


def draft_t2i(rng: random.Random) -> Draft:
    """A caption, half of the time behind one of the published cliches."""
    return _captioned(random_scene(rng), rng)


def draft_star(rng: random.Random) -> Draft:
    """The same of the new shape."""
    return _captioned(replace(random_scene(rng), shape=NEW_SHAPE), rng)


def _captioned(scene: Scene, rng: random.Random) -> Draft:
    prefix = f"The image {rng.choice(VERBS)} " if rng.random() < 0.5 else ""
    return Draft(f"{prefix}{scene.caption}.", (), scene, _random_size(rng))


def draft_edit(rng: random.Random) -> Draft:
    """Recolour the shape, or move it."""
    before = random_scene(rng)
    if rng.random() < 0.5:
        colour = _other(rng, SHAPE_COLOURS, before.colour)
        return Draft(f"make the {before.shape} {colour}.", (before,), replace(before, colour=colour), _random_size(rng))
    place = _other(rng, PLACES, before.place)
    after = replace(before, place=place, centre=PLACES[place])
    return Draft(f"move the {before.shape} to the {place}.", (before,), after, _random_size(rng))


def draft_in_context(rng: random.Random) -> Draft:
    """Put the shape of image 1 on the background of image 2, or give it the colour of the shape of image 2."""
    first, second = random_scene(rng), random_scene(rng)
    if rng.random() < 0.5:
        second = replace(
            second, shape=None, colour="", place="", background=_other(rng, BACKGROUND_COLOURS, first.background)
        )
        after = replace(first, background=second.background, pattern=second.pattern)
        words = f"place the {first.shape} of image 1 on the background of image 2."
        return Draft(words, (first, second), after, _random_size(rng))
    second = replace(
        second, shape=_other(rng, SHAPES, first.shape or ""), colour=_other(rng, SHAPE_COLOURS, first.colour)
    )
    words = f"give the {first.shape} of image 1 the colour of image 2."
    return Draft(words, (first, second), replace(first, colour=second.colour), _random_size(rng))


def draft_background(rng: random.Random) -> Draft:
    """Repaint the background in one flat colour; the shape, which the words name as in all edits, stays."""
    before = random_scene(rng)
    background = _other(rng, BACKGROUND_COLOURS, before.background)
    after = replace(before, background=background, pattern="plain")
    return Draft(f"paint the background of the {before.shape} {background}.", (before,), after, _random_size(rng))


def part_of(draft: Draft) -> str:
    """Which of "training", "heldout" and "choosing" a draft belongs to: a function of its identity alone.

    So a model that was trained on the first part has seen no prompt that a report scores, whatever data set it is drawn
    for, and hyper-parameters are chosen on the last.
    """
    digest = hashlib.blake2b(repr(draft.identity).encode(), digest_size=8).digest()
    return PARTS[int.from_bytes(digest, "little") % len(PARTS)]


DRAFTS: dict[str, Callable[[random.Random], Draft]] = {
    "t2i": draft_t2i,
    "star": draft_star,
    "edit": draft_edit,
    "in_context": draft_in_context,
    "background": draft_background,
}


def drafts_of(task: str, part: str, rng: random.Random) -> Iterator[Draft]:
    """Drafts of a task that belong to a part (see `part_of`), without end; only its own task has the new shape."""
    while True:
        draft = DRAFTS[task](rng)
        has_star = any(scene.shape == NEW_SHAPE for scene in (*draft.inputs, draft.output))
        if has_star == (task == "star") and part_of(draft) == part:
            yield draft


def draw_drafts(task: str, seed: int, heldout_count: int = HELDOUT_COUNT) -> tuple[list[Draft], list[Draft]]:
    """Training and held-out drafts of a task, each of its own part (see `part_of`)."""
    heldout: dict[tuple[Any, ...], Draft] = {}
    drafts = drafts_of(task, "heldout", random.Random(f"heldout {task} {seed}"))
    while len(heldout) < heldout_count:
        draft = next(drafts)
        heldout.setdefault(draft.identity, draft)
    training = list(islice(drafts_of(task, "training", random.Random(f"training {task} {seed}")), COUNTS[task]))
    return training, list(heldout.values())


def save_scene(scene: Scene, size: tuple[int, int], stem: Path, rng: random.Random) -> Path:
    """Draw a scene and save it at `stem` plus an extension, in a format that `rng` picks among those that hold it."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    choices = ["jpeg"] * 4 + ["png", "webp", "turned"]
    if scene.is_grey:
        choices += ["grey_jpeg", "grey_png"] * 6  # as few scenes are grey
    if scene.shape is not None and scene.colour == "white":
        choices += ["hole"] * 4
    kind = rng.choice(choices)
    image = render_with_hole(scene, *size) if kind == "hole" else render(scene, *size)
    if kind.startswith("grey"):
        image = image.convert("L")
    if kind.endswith(("png", "hole")):
        path = stem.with_suffix(".png")
        image.save(path)
    elif kind == "webp":
        path = stem.with_suffix(".webp")
        image.save(path, lossless=True)
    else:
        path = stem.with_suffix(".jpg")
        exif = Image.Exif()
        if kind == "turned":
            exif[EXIF_ORIENTATION] = ROTATE_TO_SHOW
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(path, quality=95, subsampling=0, exif=exif)
    return path


def _rows(task: str, drafts: list[Draft], folder: Path, base: Path, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Save the images of the drafts below `folder` and yield their rows, with paths relative to `base`."""
    for number, draft in enumerate(drafts):
        stem = folder / f"{number:06d}"
        names = ["in"] if len(draft.inputs) == 1 else [f"in{k + 1}" for k in range(len(draft.inputs))]
        inputs = [
            save_scene(scene, draft.size, stem.with_name(f"{stem.name}_{name}"), rng)
            for scene, name in zip(draft.inputs, names, strict=True)
        ]
        output = save_scene(draft.output, draft.size, stem.with_name(f"{stem.name}_out"), rng)
        yield {
            "task_type": TASK_TYPES[task],
            "instruction": draft.instruction,
            "input_images": [path.relative_to(base).as_posix() for path in inputs],
            "output_image": output.relative_to(base).as_posix(),
        }


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_task(task: str, root: Path, seed: int) -> None:
    """Images and .jsonl files of one task, training and held out."""
    training, heldout = draw_drafts(task, seed)
    rng = random.Random(f"files {task} {seed}")
    rows = _rows(task, training, root / "images" / task, root, rng)
    lines = break_rows(task, [json.dumps(row) for row in rows], root)
    _write_lines(root / f"{task}.jsonl", lines)
    base = root / "heldout"
    lines = []
    for number, row in enumerate(_rows(task, heldout, base / "images" / task, base, rng)):
        draft = heldout[number]
        extra = {"key": f"{task}-{number:03d}", "expect": expectation(draft.output, *draft.size)}
        lines.append(json.dumps({**extra, **row}))
    _write_lines(base / f"{task}.jsonl", lines)


def _write_known(folder: Path, count: int) -> None:
    """The first `count` lines of each task of the base in one file."""
    tasks = [(folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines() for task in BASE_TASKS]
    _write_lines(folder / f"{KNOWN}.jsonl", [line for own in tasks for line in own[:count]])


def write_dataset(root: Path, seed: int = 0) -> None:
    """Write the whole data set as the folder `root`, in place of an older one; the same seed, the same bytes.

    It is written beside `root` and renamed at the end. Raises ValueError where `root` holds anything else.
    """
    own = {"images", "heldout", *(f"{task}.jsonl" for task in (*COUNTS, KNOWN))}
    foreign = sorted(path.name for path in root.iterdir() if path.name not in own) if root.exists() else []
    if foreign:
        raise ValueError(f"{root}: holds {foreign[0]!r}, which is not of the demo data set; move it away")
    with atomic_folder(root) as temporary:
        for task in COUNTS:
            _write_task(task, temporary, seed)
        _write_known(temporary, KNOWN_ROWS)
        _write_known(temporary / "heldout", HELDOUT_COUNT // len(BASE_TASKS))

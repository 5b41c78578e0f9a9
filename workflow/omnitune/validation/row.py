"""One line of a .jsonl file: what a sample must hold, and the random draws of its conditioning in training."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnitune.errors import Refused, shown
from omnitune.io.jsonl import json_kind

# Task types as published, and the name each is kept under.
TASK_TYPES = {"t2i": "t2i", "text_to_image": "t2i", "edit": "edit", "ic": "ic", "in_context": "ic"}
MAX_INPUT_IMAGES = 5  # the model has five image index embeddings
KNOWN_KEYS = frozenset({"task_type", "instruction", "input_images", "output_image"})
CLICHE = re.compile(r"(?:The image (?:portrays|depicts|captures|highlights|shows) |这张图片展示了)")


@dataclass(frozen=True)
class Row:
    """An accepted line: task type under its short name, paths as written, and notes on what was unusual."""

    task_type: str
    instruction: str
    input_images: tuple[str, ...]
    output_image: str
    notes: tuple[str, ...] = ()


def check_row(content: dict[str, Any], instruction_keys: Sequence[str] = ("instruction",)) -> Row:
    """Checks one sample against the published format.

    Args:
        content: the object on the line: task_type, instruction, input_images (paths; may be absent or null) and
            output_image (path).
        instruction_keys: of these the first that has a text is the instruction.

    Raises:
        Refused: wrong_type, unknown_task_type, empty_instruction, no_output_image, no_input_images,
            too_many_input_images or unexpected_input_images.
    """
    task_type = _task_type(content)
    key = next((key for key in instruction_keys if isinstance(content.get(key), str) and content[key].strip()), None)
    instruction = _instruction(content, key or instruction_keys[-1])
    inputs = _input_images(content)
    _check_number_of_inputs(task_type, len(inputs))
    notes = [
        f"unknown key {shown(key)} is ignored" for key in sorted(set(content) - KNOWN_KEYS - set(instruction_keys))
    ]
    if content["task_type"] != task_type:
        notes.append(f"task_type {content['task_type']!r} is read as {task_type!r}")
    return Row(task_type, instruction, inputs, _output_image(content), tuple(notes))


def _task_type(content: dict[str, Any]) -> str:
    known = ", ".join(TASK_TYPES)
    value = content.get("task_type")
    if value is None:
        raise Refused("unknown_task_type", f"task_type is missing; known: {known}")
    if not isinstance(value, str):
        raise Refused("wrong_type", f"task_type must be a string, found {json_kind(value)}")
    if value not in TASK_TYPES:
        raise Refused("unknown_task_type", f"task_type {shown(value)} is not known; known: {known}")
    return TASK_TYPES[value]


def _instruction(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if value is None:
        raise Refused("empty_instruction", f"{key} is missing")
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{key} must be a string, found {json_kind(value)}")
    if not value.strip():
        raise Refused("empty_instruction", f"{key} is empty")
    return _encodable(value, key)


def _encodable(value: str, key: str) -> str:
    """Refuses half of a character pair, which JSON can spell and no file or tokenizer can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("bad_json", f"{key} holds a lone surrogate (\\ud800 to \\udfff)") from None
    return value


def _path(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise Refused("wrong_type", f"{key} must be a path (a string), found {json_kind(value)}")
    if not value.strip():
        raise Refused("wrong_type", f"{key} is an empty path")
    return _encodable(value, key)


def _input_images(content: dict[str, Any]) -> tuple[str, ...]:
    value = content.get("input_images")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Refused("wrong_type", f"input_images must be a list of paths, found {json_kind(value)}")
    return tuple(_path(item, f"input_images[{k}]") for k, item in enumerate(value))


def _output_image(content: dict[str, Any]) -> str:
    value = content.get("output_image")
    if value is None or value == "":
        raise Refused("no_output_image", "output_image is missing; every sample needs the image to be learnt")
    return _path(value, "output_image")


def _check_number_of_inputs(task_type: str, number: int) -> None:
    if task_type == "t2i" and number:
        message = f"task_type 't2i' takes no input_images, found {number}; 'edit' and 'ic' take them"
        raise Refused("unexpected_input_images", message)
    if task_type != "t2i" and not number:
        message = f"task_type {task_type!r} needs 1 to {MAX_INPUT_IMAGES} input_images, found none"
        raise Refused("no_input_images", message)
    if number > MAX_INPUT_IMAGES:
        raise Refused(
            "too_many_input_images", f"the model takes at most {MAX_INPUT_IMAGES} input_images, found {number}"
        )


def remove_cliche(instruction: str) -> str:
    """The caption without a leading "The image portrays " or the like; a caption of nothing else stays as it is."""
    match = CLICHE.match(instruction)
    rest = instruction[match.end() :] if match else instruction
    return rest if rest.strip() else instruction


def draw_condition(
    task_type: str,
    instruction: str,
    rng: np.random.Generator,
    prompt_dropout_prob: float,
    ref_img_dropout_prob: float,
) -> tuple[str, bool, bool]:
    """Draws what a sample is conditioned on in one training step.

    The instruction is dropped with `prompt_dropout_prob`; where it is, and only there, the references are dropped with
    `ref_img_dropout_prob`. The captions of text-to-image samples lose a leading cliche with probability 1/2.

    Returns:
        (instruction, drop_prompt, drop_references); a dropped instruction is "".
    """
    # All draws are taken each time, so that one probability's value does not move the others' outcomes.
    prompt_draw, reference_draw, cliche_draw = rng.random(3)
    drop_prompt = bool(prompt_draw < prompt_dropout_prob)
    drop_references = drop_prompt and bool(reference_draw < ref_img_dropout_prob)
    if drop_prompt:
        return "", True, drop_references
    if TASK_TYPES.get(task_type) == "t2i" and cliche_draw < 0.5:
        instruction = remove_cliche(instruction)
    return instruction, False, False

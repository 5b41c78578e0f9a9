"""What the demo's base model is trained on: drafts of the demo's world, drawn, encoded and put into tables."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from omnitune.demo.dataset import BASE_TASKS, drafts_of
from omnitune.demo.scenes import Scene, render
from omnitune.images.resize import resize, target_size
from omnitune.io.workers import ordered_map
from omnitune.models.encoder import FrozenEncoder

PIXELS = 64 * 64
SIDE = 64
PATCHES = 16  # of a picture of 64 x 64; the oblong ones have fewer
PATCH_VALUES = 16
REFERENCES = 2
SHARES = {"t2i": 0.3, "edit": 0.4, "in_context": 0.3}

Picture = np.ndarray  # uint8 [height, width, 3]


def picture(scene: Scene, size: tuple[int, int], raw: tuple[int, int]) -> Picture:
    """The scene drawn at its raw size and resized as a data set's images are."""
    return np.asarray(resize(render(scene, *raw), size))


def _draw_chunk(chunk: tuple[str, int, int, int]) -> list[tuple[str, list[Picture]]]:
    """Instruction and pictures, the output last, of a chunk's drafts; every other composition has a square output."""
    task, number, seed, count = chunk
    rng = random.Random(f"base {task} {number} {seed}")
    rows = []
    for draft in list(islice(drafts_of(task, "training", rng), count)):  # all before the numbers drawn below
        size = target_size(*draft.size, PIXELS, 2048)
        pictures = [picture(scene, size, draft.size) for scene in draft.inputs]
        square = task == "in_context" and rng.random() < 0.5
        output = ((SIDE, SIDE), (2 * SIDE, 2 * SIDE)) if square else (size, draft.size)
        rows.append((draft.instruction, [*pictures, picture(draft.output, *output)]))
    return rows


def patches(latent: Tensor) -> Tensor:
    """[n, C, H, W] to [n, PATCHES, 4 C], padded with zeros, in the transformer's order of patches."""
    n, channels, height, width = latent.shape
    tokens = (
        latent.reshape(n, channels, height // 2, 2, width // 2, 2)
        .permute(0, 2, 4, 3, 5, 1)
        .reshape(n, -1, 4 * channels)
    )
    return torch.nn.functional.pad(tokens, (0, 0, 0, PATCHES - tokens.shape[1]))


@dataclass
class Tables:
    """All samples on the device.

    Attributes:
        means, deviations: [pictures, PATCHES, PATCH_VALUES] scaled posteriors.
        grids: int64 [pictures, 2]; picture 0 is none.
        samples: int64 [samples, REFERENCES + 2]: numbers of the references (0: none), of the output and of the text.
        texts: [texts, longest, features] and lengths: [texts]; text 0 is the dropped one.
    """

    means: Tensor
    deviations: Tensor
    grids: Tensor
    samples: Tensor
    texts: Tensor
    lengths: Tensor


@torch.no_grad()
def _encode(encoder: FrozenEncoder, pictures: Sequence[Picture], scaling: tuple[float, float]) -> list[Tensor]:
    """Means, deviations and grids of pictures (see Tables), the empty one first."""
    shift, scale = scaling
    shape = (len(pictures) + 1, PATCHES, PATCH_VALUES)
    means, deviations = torch.zeros(shape, device=encoder.device), torch.zeros(shape, device=encoder.device)
    grids = torch.zeros(len(pictures) + 1, 2, dtype=torch.int64, device=encoder.device)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, pixels in enumerate(pictures):
        groups.setdefault(pixels.shape, []).append(number)
    for (height, width, _), numbers in groups.items():
        for start in range(0, len(numbers), 1024):
            own = numbers[start : start + 1024]
            images = torch.from_numpy(np.stack([pictures[k] for k in own])).to(encoder.device)
            posterior = encoder.vae.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
            rows = torch.tensor(own, device=encoder.device) + 1
            means[rows] = patches((posterior.mean - shift) * scale)
            deviations[rows] = patches(posterior.std * scale)
            grids[rows] = torch.tensor([height // 16, width // 16], device=encoder.device)
    return [means, deviations, grids]


def _died(chunk: object, code: int) -> NoReturn:
    raise RuntimeError(f"the process that drew {chunk} ended with exit code {code}")


def build_tables(
    encoder: FrozenEncoder, scaling: tuple[float, float], count: int, chunk: int, seed: int, workers: int
) -> Tables:
    """Draws and encodes about `count` samples; workers draw `chunk` of one task at a time, each with its own seed."""
    chunks = [
        (task, number, seed, chunk)
        for task in BASE_TASKS
        for number in range(max(1, round(count * SHARES[task] / chunk)))
    ]
    pictures: list[Picture] = []
    samples: list[list[int]] = []
    texts = {"": 0}
    for [rows] in ordered_map(_draw_chunk, ([chunk] for chunk in chunks), workers, _died):
        for instruction, drawn in rows:
            first = len(pictures) + 1
            pictures += drawn
            numbers = list(range(first, first + len(drawn)))
            references = (numbers[:-1] + [0] * REFERENCES)[:REFERENCES]
            samples.append([*references, numbers[-1], texts.setdefault(instruction, len(texts))])
    means, deviations, grids = _encode(encoder, pictures, scaling)
    features: list[Tensor] = []
    for start in range(0, len(texts), 512):
        own = list(texts)[start : start + 512]
        features += encoder.texts(own, [not text for text in own])
    lengths = torch.tensor([len(text) for text in features], device=encoder.device)
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    padded = torch.nn.functional.pad(
        padded, (0, 0, 0, -padded.shape[1] % 8)
    )  # kernels of attention like multiples of 8
    numbers_of = torch.tensor(samples, device=encoder.device)
    return Tables(means, deviations, grids, numbers_of, padded, lengths)

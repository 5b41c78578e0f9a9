"""Floating point operations of the transformer, for planning and for the share of a GPU's peak that a training reaches.

Counted are matrix products, a multiplication and an addition as two operations. A Linear layer costs
2 x inputs x outputs for each token that passes through it; the attention of a sequence of length L 4 x L^2 x
hidden_size. A backward pass costs once more for the gradient of what entered, and once more for that of a trained
weight. What gradient checkpointing computes again is not counted: the model FLOPs utilisation (MFU, arXiv 2204.02311)
asks what the model needs.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Transformer2DModel


@dataclass(frozen=True)
class SampleTokens:
    """The tokens of a sample: of its text, of each reference image, of the output image."""

    text: int
    references: tuple[int, ...]
    image: int

    @property
    def total(self) -> int:
        """Length of the sequence that the joint layers see."""
        return self.text + sum(self.references) + self.image

    def sequences(self, stage: str) -> tuple[int, ...]:
        """Lengths of the sample's sequences in the text, the reference, the image or the joint blocks."""
        return {
            "text": (self.text,),
            "reference": self.references,
            "image": (self.image,),
            "joint": (self.total,),
            "sample": (1,),
        }[stage]


@dataclass(frozen=True)
class Unit:
    """A part of the model through which the tokens of one stage pass; `block` where it has attention in it."""

    stage: str
    module: nn.Module
    block: bool = False


def units(model: OmniGen2Transformer2DModel) -> Iterator[Unit]:
    """The parts of the model in the order in which a forward uses them.

    Stages are `text`, `image`, `reference`, `joint` (all three), and `sample`, once per sample: the embedding of its
    time.
    """
    embedding = model.time_caption_embed
    yield Unit("sample", embedding.timestep_embedder.linear_1)
    yield Unit("sample", embedding.timestep_embedder.linear_2)
    refiners = {
        "text": (embedding.caption_embedder, model.context_refiner),
        "image": (model.x_embedder, model.noise_refiner),
        "reference": (model.ref_image_patch_embedder, model.ref_image_refiner),
    }
    for stage, (embedder, blocks) in refiners.items():
        yield Unit(stage, embedder)
        yield from (Unit(stage, block, block=True) for block in blocks)
    yield from (Unit("joint", block, block=True) for block in model.layers)
    yield Unit("sample", model.norm_out.linear_1)
    yield Unit("image", model.norm_out.linear_2)


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter of a module is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def gradient_reaches(model: OmniGen2Transformer2DModel) -> list[tuple[Unit, bool]]:
    """Each unit, and whether what enters it has a gradient: whether anything trained lies before it."""
    reached = dict.fromkeys(("sample", "text", "image", "reference"), False)
    found = []
    for unit in units(model):
        if unit.stage == "joint" and "joint" not in reached:
            reached["joint"] = any(reached[stage] for stage in ("text", "image", "reference"))
        last = unit.module is model.norm_out.linear_2
        before = reached["joint" if last and "joint" in reached else unit.stage]
        # Modulated blocks pass the gradient of the time embedding on.
        found.append((unit, before or (unit.block and unit.stage != "text" and reached["sample"])))
        reached[unit.stage] |= is_trained(unit.module) or found[-1][1]
        if unit.module is model.ref_image_patch_embedder:  # behind it the index of each reference is added
            reached["reference"] |= model.image_index_embedding.requires_grad
    return found


class ModelFlops:
    """FLOPs of one model, by the samples that it computes on.

    Args:
        model: on any device, the meta device included, with adapters and `requires_grad` as in training.
    """

    def __init__(self, model: OmniGen2Transformer2DModel) -> None:
        self._per_token: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        self._per_square: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        temb_trained = is_trained(model.time_caption_embed.timestep_embedder)
        for unit, reached in gradient_reaches(model):
            if unit.block:
                backward = reached or is_trained(unit.module)
                self._add(self._per_square, unit.stage, 4 * model.config.hidden_size, 2 if backward else 0)
            for name, layer in unit.module.named_modules():
                if not isinstance(layer, nn.Linear):
                    continue
                modulation = name.startswith("norm1.")
                stage = "sample" if modulation else unit.stage
                own = {id(parameter) for parameter in layer.parameters()}
                others = any(p.requires_grad for p in unit.module.parameters() if id(p) not in own)
                into = temb_trained if modulation else reached or others
                passes = int(into) + int(layer.weight.requires_grad)
                self._add(self._per_token, stage, 2 * layer.in_features * layer.out_features, passes)

    @staticmethod
    def _add(counts: dict[bool, Counter[str]], stage: str, forward: int, backward_passes: int) -> None:
        counts[False][stage] += forward
        counts[True][stage] += forward * (1 + backward_passes)

    def forward(self, samples: Sequence[SampleTokens]) -> int:
        """FLOPs of a forward over samples."""
        return self._count(samples, training=False)

    def training(self, samples: Sequence[SampleTokens]) -> int:
        """FLOPs of forward and backward over samples, such as the global batch of a step."""
        return self._count(samples, training=True)

    def _count(self, samples: Sequence[SampleTokens], training: bool) -> int:
        per_token, per_square = self._per_token[training], self._per_square[training]
        total = 0
        for sample in samples:
            total += sum(cost * sum(sample.sequences(stage)) for stage, cost in per_token.items())
            total += sum(cost * n * n for stage, cost in per_square.items() for n in sample.sequences(stage))
        return total


# Dense matrix products per second, in 10^12: (bf16 and fp16 with float32 sums, float32 without TF32), from the data
# sheets and architecture papers of NVIDIA. A name stands before those that are a part of it.
PEAK_TERAFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250, 75),
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "H20": (148, 44),
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A40": (150, 37.4),
    "A30": (165, 10.3),
    "A10": (125, 31.2),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX A6000": (155, 38.7),
    "RTX 5090": (209, 104.8),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
}
PIXELS_PER_TOKEN = 16 * 16  # of an image: the VAE makes one of 8 x 8, the transformer a token of 2 x 2 of these
OTHER_CHIPS = re.compile(r"\b(MIG|Ti|D|SUPER|Laptop)\b")  # a part of a GPU, or another one under a similar name


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Peak FLOPs per second of a GPU.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        dtype: of the matrix products: bfloat16, float16 or float32.

    Returns:
        None where it is not known.
    """
    if dtype not in {torch.bfloat16, torch.float16, torch.float32} or OTHER_CHIPS.search(device_name):
        return None
    words = f" {re.sub(r'[^A-Za-z0-9]+', ' ', device_name)} "
    for name, (half, full) in PEAK_TERAFLOPS.items():
        if f" {name} " in words:
            return (full if dtype == torch.float32 else half) * 1e12
    return None

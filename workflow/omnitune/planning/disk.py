"""What a training takes of disks, by what it is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omnitune.config import ExperimentOptions, StartingWeights
from omnitune.config.choices import IMAGE_FORMATS
from omnitune.config.mixtures.sources import Source
from omnitune.flops import PIXELS_PER_TOKEN
from omnitune.planning.published import download_bytes, pipeline_bytes
from omnitune.planning.samples import AssumedSamples
from omnitune.sharding.index import ShardIndex

LATENTS_PER_TOKEN = 2 * 2  # positions of the VAE's latents
WIDTHS = {None: 4, "fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a converted number, at most
BASE_MODEL = "base model"


@dataclass(frozen=True)
class DiskSpace:
    """Bytes for one purpose; None where they are not known before. `note`: where, and how sure it is."""

    purpose: str
    size: int | None
    note: str


def weights_space(start: StartingWeights) -> list[DiskSpace]:
    """Of the base model: its download and its folder. The cache of downloads keeps what the folder is a copy of."""
    model, there = start.source, start.base.is_dir()
    found = pipeline_bytes(model, start.base)
    state = "is there" if there else f"a copy of {model.pretrained_model_path}" if _is_local(model) else "about"
    space = [DiskSpace(BASE_MODEL, found, f"{start.base}; {state}")]
    fetched = download_bytes(model)
    if there or fetched == 0:
        return space
    return [DiskSpace("downloads", fetched, "in cache_dir, or else the library's cache; about, may be there"), *space]


def conversions_space(
    options: ExperimentOptions, parameters: int, trained: int, base: Sequence[DiskSpace] = (), widths: int = 0
) -> DiskSpace:
    """Of what is converted: each checkpoint, or average, that is evaluated, in each of its formats.

    Args:
        options: of the experiment.
        parameters, trained: numbers of the transformer's.
        base: of the base model, from `weights_space`; a whole pipeline is about as large, and not known where that is
            not.
        widths: of all linear layers, in and out, which a LoRA has so many numbers of for each rank.
    """
    width, number, formats = WIDTHS[options.convert.dtype], len(options.evaluated), options.convert.formats
    written = dict.fromkeys(formats, width * parameters)
    if options.train.lora_ft:
        written |= {name: width * trained for name in formats if name in ("diffusers", "comfyui")}
    if "extracted" in formats:
        written["extracted"] = width * widths * options.convert.extracted_rank * 3  # in three files
    sizes: list[int | None] = [number * size for name, size in written.items() if name != "pipeline"]
    if "pipeline" in formats:
        pipeline = next((space.size for space in base if space.purpose == BASE_MODEL), None)
        sizes.append(None if pipeline is None else number * pipeline)
    known = [size for size in sizes if size is not None]
    return DiskSpace(
        "conversions", sum(known) if len(known) == len(sizes) else None, f"{number} as {', '.join(formats)}"
    )


def _is_local(model: Any) -> bool:
    return Path(model.pretrained_model_path).is_dir()


def data_space(
    options: ExperimentOptions,
    config: Mapping[str, Any],
    samples: ShardIndex | AssumedSamples,
    sources: Sequence[Source],
) -> list[DiskSpace]:
    """Of prepared data: tars and, with data.encode, encodings.

    Args:
        options: of the experiment.
        config: of the transformer.
        samples: those of the shards, or assumed ones.
        sources: of the mixture.
    """
    if isinstance(samples, AssumedSamples):
        images, texts, tars = _assumed(options, samples, sources)
        note = "at most about: all images at the limits"
    else:
        images, texts, tars = _indexed(options, samples, sources)
        note = "is there"
    space = [DiskSpace("tars", tars, f"prepared/{options.data.dataset}/shards; {note}")]
    if not options.data.encode:
        return space
    width = 2 if options.data.encoded_precision == "bf16" else 4
    per_token = 2 * LATENTS_PER_TOKEN * config["in_channels"]  # mean and variance
    size = None
    if images is not None and texts is not None:
        size = width * (images * per_token + texts * config["text_feat_dim"])
    where = f"prepared/{options.data.dataset}/encoded"
    return [*space, DiskSpace("encodings", size, f"{where}; {'at most' if note != 'is there' else 'about'}")]


def _indexed(options: ExperimentOptions, index: ShardIndex, sources: Sequence[Source]) -> tuple[int, int, int]:
    """Tokens of images and texts of all samples, and bytes of their tars."""
    images = texts = 0
    tars: dict[str, int] = {}
    for source in sources:
        for part in index.parts(source.name):
            for name in ("output_tokens", "input_tokens"):
                images += int(part.column(name).to_numpy().astype(np.int64).sum())
            counted = part.column("text_tokens") if "text_tokens" in part.schema.names else pa.nulls(part.num_rows)
            counted = pc.fill_null(counted.cast(pa.int64()), options.data.maximum_text_tokens)
            texts += pc.sum(counted).as_py()
            files = (
                pa.Table.from_batches([part.select(["tar", "tar_bytes"])]).group_by(["tar", "tar_bytes"]).aggregate([])
            )
            tars.update(zip(files["tar"].to_pylist(), files["tar_bytes"].to_pylist(), strict=True))
    return images, texts, sum(tars.values())


def _assumed(
    options: ExperimentOptions, samples: AssumedSamples, sources: Sequence[Source]
) -> tuple[int | None, int | None, int | None]:
    """The same of assumed samples; None where it is not known how many there are."""
    images = texts = 0
    for source in sources:
        count, row = samples.counts[source.name], samples.row(source.name, 0)
        if count is None:
            return None, None, None
        images += count * (row.output_tokens + row.input_tokens)
        texts += count * options.data.maximum_text_tokens
    bytes_per_pixel = IMAGE_FORMATS[options.data.image_format].bytes_per_pixel
    return images, texts, int(bytes_per_pixel * PIXELS_PER_TOKEN * images)

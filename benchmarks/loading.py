"""Samples per second of one core: from the originals each time, from shards, and from encoded data."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from rich.table import Table

from omnitune.config import ExperimentOptions
from omnitune.demo.base_model import build_base_model
from omnitune.demo.vae import VAE_CONFIG
from omnitune.distributed.processes import Topology
from omnitune.encoding.encode import EncodingFiles, encode_dataset
from omnitune.encoding.fingerprint import fingerprint_of
from omnitune.encoding.read import EncodedIndex
from omnitune.images.prepare import ImageLimits, target_size
from omnitune.loading.loader import ShardIndex, TrainingBatches
from omnitune.loading.order import MixtureOrder
from omnitune.sharding.shard import shard_dataset
from omnitune.validation.dataset import validate_mixture

SIZE = (4000, 3000)
LIMITS = ImageLimits(max_output_pixels=1024 * 1024, max_input_pixels=1024 * 1024, max_side_length=2048)
SAMPLES = 2  # one of them with an input image
SECONDS = 4.0
INSTRUCTION = "A wide valley in the morning, seen from a hill with a single tree. " * 8


def photograph(rng: np.random.Generator) -> Image.Image:
    """Twelve megapixels with detail at all scales, as a camera's JPEG has them."""
    width, height = SIZE
    total = np.zeros((height, width, 3), np.float32)
    for cells in (6, 25, 100, 400, 1600):
        grid = rng.normal(128, 1, (cells * 3 // 4, cells, 3)).astype(np.float32)
        planes = [
            Image.fromarray(plane).resize(SIZE, Image.Resampling.BICUBIC) for plane in np.moveaxis(grid - 128, -1, 0)
        ]
        total += np.stack([np.asarray(plane) for plane in planes], -1) * (220 / cells**0.5)
    total += rng.normal(0, 3, total.shape[:2])[..., None]  # a sensor's noise
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def write_originals(folder: Path) -> list[list[Path]]:
    """Originals as JPEG of quality 90 and the mixture over them; returns the images of each sample."""
    rng = np.random.default_rng(0)
    samples, rows = [], []
    for number in range(SAMPLES):
        paths = [folder / f"{number}_{k}.jpg" for k in range(1 + number % 2)]
        for path in paths:
            photograph(rng).save(path, quality=90)
        inputs = [path.name for path in paths[:-1]]
        row = {"task_type": "edit" if inputs else "t2i", "instruction": INSTRUCTION, "input_images": inputs}
        rows.append(json.dumps({**row, "output_image": paths[-1].name}) + "\n")
        samples.append(paths)
    (folder / "photos.jsonl").write_text("".join(rows))
    (folder / "photos.yml").write_text(f"data:\n- path: {folder / 'photos.jsonl'}\n")
    return samples


def from_original(path: Path) -> torch.Tensor:
    """Opens, decodes and shrinks an original by Lanczos, as loaders do that prepare nothing."""
    image = Image.open(path).convert("RGB")
    image = image.resize(
        target_size(*image.size, LIMITS.max_output_pixels, LIMITS.max_side_length), Image.Resampling.LANCZOS
    )
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1)


def write_shards(folder: Path) -> None:
    """Validates and shards the originals."""
    validate_mixture(folder / "photos.yml", folder / "validation", progress=False)
    shard_dataset(folder / "validation", folder / "shards", LIMITS, progress=False)


def batches_of(folder: Path, encoded: EncodedIndex | None = None) -> TrainingBatches:
    """The loader of a process that trains on the shards, or on what was encoded of them."""
    index = ShardIndex.load(folder / "shards" / "index.parquet")
    plan = MixtureOrder(index.sizes(["photos"]), [1.0], 0)
    size = {"global_batch_size": SAMPLES, "batch_size": SAMPLES}
    return TrainingBatches(index, plan, ["photos"], seed=0, encoded=encoded, **size)


def encoded_of(folder: Path, index: ShardIndex) -> EncodedIndex:
    """Encodes the shards: the demo's model, but with a VAE that has the published number of latent channels."""
    build_base_model(folder / "base")
    AutoencoderKL(**{**VAE_CONFIG, "latent_channels": 16}).save_pretrained(folder / "base" / "vae")
    data = {"data_path": str(folder / "photos.yml"), "encode": True, "encoded_precision": "bf16"}
    content = {"name": "loading", "data": data, "model": {"pretrained_model_path": str(folder / "base")}}
    (folder / "options.yml").write_text(json.dumps(content))
    options = ExperimentOptions.load(folder / "options.yml")
    files = EncodingFiles(folder / "options.yml", folder / "base", folder / "encoded")
    encode_dataset(options, files, Path(index.path), Topology(1))
    fingerprint = fingerprint_of(folder / "base", options.data)
    return EncodedIndex(folder / "encoded", fingerprint, index, ["photos"], options.data.shards_per_encoding)


def rate(step: Callable[[int], object]) -> float:
    """Samples per second of a core's time that what reads SAMPLES of them at each step takes in its fastest step."""
    times, ends = [], time.perf_counter() + SECONDS
    while len(times) < 3 or time.perf_counter() < ends:
        started = time.process_time()  # files are in memory, and other work on the machine is none of this
        step(len(times))
        times.append(time.process_time() - started)
    return SAMPLES / min(times)


def tables() -> list[Table]:
    """Each way over the same samples, half of them with an input image, in one run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="omnitune-benchmark-") as name:
        folder = Path(name)
        originals = write_originals(folder)
        write_shards(folder)
        shards = batches_of(folder)
        encoded = batches_of(folder, encoded_of(folder, shards.index))
        torch.set_num_threads(1)
        rates = {
            "originals, shrunk each time": rate(lambda _: [[*map(from_original, paths)] for paths in originals]),
            "shards": rate(lambda step: shards[step, 0]),
            "encoded": rate(lambda step: encoded[step, 0]),
        }
        files = {
            "originals, shrunk each time": [path.stat().st_size for paths in originals for path in paths],
            "shards": [path.stat().st_size for path in (folder / "shards").glob("*.tar")],
            "encoded": [path.stat().st_size for path in (folder / "encoded").glob("*.tar")],
        }
    result = Table(
        "from",
        "samples/s of a core",
        "ratio",
        "MB per sample",
        title="Loading 12-megapixel photographs, one thread, bytes in memory",
    )
    for way, value in rates.items():
        ratio = value / rates["originals, shrunk each time"]
        result.add_row(way, f"{value:.2f}", f"{ratio:.1f}", f"{sum(files[way]) / SAMPLES / 1e6:.2f}")
    return [result]

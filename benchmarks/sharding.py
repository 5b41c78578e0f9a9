"""Sharding: 12-megapixel JPEGs per second beside img2dataset, how near the pixels are, and memory at 100 megapixels.

img2dataset runs in an environment of its own, benchmarks/.venv-img2dataset, which is made once (its pins differ).
"""

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from omnitune.images.prepare import ImageLimits
from omnitune.sharding.shard import shard_dataset
from omnitune.validation.dataset import ShardCut, merge_validation
from omnitune.validation.source import Checks, validate_source

IMAGES, WIDTH, HEIGHT = 24, 4014, 3024  # sides of which both programs make the same target size
TARGET = (1168, 880)
LIMITS = ImageLimits(1_048_576, 1_048_576, 2048)
# Rates are of the rows by which the long run is longer than the short one: starting and importing is in neither.
SHORT, LONG, ROUNDS = 48, 144, 2
WORKERS = 2  # each writes one tar: img2dataset starts its processes anew after every few
LARGE = (12_000, 8_400)
LARGE_WEBP = (16_383, 6_104)
ENVIRONMENT = Path(__file__).parent / ".venv-img2dataset"
PACKAGE = "img2dataset==1.47.0"

DOWNLOAD = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], input_format="txt", output_format="webdataset",
             image_size=880, resize_mode="keep_ratio", encode_format="jpg", encode_quality=95,
             processes_count=2, thread_count=4, number_sample_per_shard=int(sys.argv[3]))
"""
MEMORY = """
import sys
from pathlib import Path
from omnitune.sharding import shard  # all that a worker has loaded
from omnitune.sharding.sample_images import LARGE_FILE
from omnitune.images.prepare import prepare_image
path = Path(sys.argv[1])
image = prepare_image(path if path.stat().st_size > LARGE_FILE else path.read_bytes(), 1_048_576, 2048)
status = Path("/proc/self/status").read_text()
print(image.width, image.height, int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def tables() -> list[Table]:
    """Images per second beside img2dataset, and memory of a worker."""
    with tempfile.TemporaryDirectory(prefix="omnitune-bench-") as name:
        folder = Path(name)
        photographs = _write_photographs(folder)
        return [_rates(folder, photographs), _memory(folder)]


@cache
def photograph(seed: int) -> Image.Image:
    """Detail at all scales, as photographs have, and the noise of a sensor."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for octave in range(1, 12):
        field = Image.fromarray(random.integers(0, 256, (2**octave, 2**octave, 3), np.uint8))
        pixels += 0.6**octave * np.asarray(field.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    pixels += random.normal(0, 0.1 * pixels.std(), pixels.shape).astype(np.float32)
    pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write_photographs(folder: Path) -> list[Path]:
    paths = []
    for k in range(IMAGES):
        image = photograph(k % 2)
        image = Image.fromarray(np.roll(np.asarray(image), (k * 251, k * 173), axis=(0, 1)))
        paths.append(folder / f"{k:02d}.jpg")
        image.save(paths[-1], quality=90)
    return paths


def _rates(folder: Path, photographs: list[Path]) -> Table:
    size = sum(path.stat().st_size for path in photographs) / IMAGES / 2**20
    title = (
        f"JPEGs of {WIDTH} x {HEIGHT} pixels, {size:.1f} MiB each, to {TARGET[0]} x {TARGET[1]} in tars; quality 95, "
        f"{WORKERS} processes. PSNR against full decode and Lanczos"
    )
    columns = ("program", "images/s", "ratio", "CPU in ms per image", "ratio", "PSNR in dB, least and mean")
    table = Table(*columns, title=title)
    programs = {"img2dataset 1.47.0 (area, 4:2:0)": _img2dataset, "omnitune shard (Lanczos, 4:4:4)": _omnitune}
    least = {(name, rows): np.full(2, np.inf) for name in programs for rows in (SHORT, LONG)}
    for number in range(ROUNDS):  # by turns, and the least of each, as other work on the machine slows either
        for (name, rows), seconds in least.items():
            place = folder / f"{programs[name].__name__}-{number}"
            place.mkdir(exist_ok=True)
            np.minimum(seconds, programs[name](place, photographs, rows), out=seconds)
    per_image = {name: (least[name, LONG] - least[name, SHORT]) / (LONG - SHORT) for name in programs}
    reference = next(iter(per_image.values()))
    for name, (wall, cpu) in per_image.items():
        differences = _differences(folder / f"{programs[name].__name__}-0" / str(SHORT), photographs)
        closeness = f"{min(differences):.1f}, {sum(differences) / len(differences):.1f}"
        ratios = [f"{ratio:.2f}" for ratio in reference / (wall, cpu)]
        table.add_row(name, f"{1 / wall:.1f}", ratios[0], f"{cpu * 1000:.0f}", ratios[1], closeness)
    return table


def _clock() -> np.ndarray:
    """Seconds on the clock, and of CPU in processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])


def _img2dataset(folder: Path, photographs: list[Path], rows: int) -> np.ndarray:
    """Seconds, on the clock and of CPU, that it takes for so many rows; what it wrote lies in folder/{rows}."""
    if not (ENVIRONMENT / "bin" / "img2dataset").exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", PACKAGE], check=True)
    output = folder / str(rows)
    urls = folder / f"{rows}.txt"
    urls.write_text("".join(f"{photographs[k % IMAGES].as_uri()}\n" for k in range(rows)))
    script = folder / "download.py"
    script.write_text(DOWNLOAD)
    started = _clock()
    subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), str(script), str(urls), str(output), str(rows // WORKERS)],
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return _clock() - started


def _omnitune(folder: Path, photographs: list[Path], rows: int) -> np.ndarray:
    """The same for sharding; the rows were validated before."""
    samples = folder / f"{rows}.jsonl"
    lines = [
        {"task_type": "t2i", "instruction": str(k), "output_image": str(photographs[k % IMAGES])} for k in range(rows)
    ]
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    validated = folder / f"validated-{rows}"
    validate_source("a", [samples], validated / "a", Checks("full"), workers=WORKERS, progress=False)
    merge_validation([validated / "a"], validated, max_reject_fraction=0, cut=ShardCut(rows // WORKERS))
    started = _clock()
    shard_dataset(validated, folder / str(rows), LIMITS, workers=WORKERS, progress=False)
    return _clock() - started


def _differences(output: Path, photographs: list[Path]) -> list[float]:
    """PSNR of the first images written, in the order of the photographs."""
    written = {}
    for tar in sorted(output.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None and member.name.endswith(".jpg"):
                    written[member.name] = stream.read()
    if len(written) != SHORT:
        raise ValueError(f"{output}: {len(written)} images were written of {SHORT}")
    result = []
    for path, name in zip(photographs, sorted(written), strict=False):
        image, exact = Image.open(io.BytesIO(written[name])), Image.open(path).resize(TARGET, Image.Resampling.LANCZOS)
        if image.size != TARGET:
            raise ValueError(f"{name} has {image.size} pixels, not {TARGET}")
        squares = (np.asarray(image, np.float32) - np.asarray(exact, np.float32)) ** 2
        result.append(float(10 * np.log10(255**2 / squares.mean())))
    return result


def _memory(folder: Path) -> Table:
    """Peak memory of a process that brings one image of 100 megapixels below 1,048,576."""
    table = Table(
        "image", "file in MiB", "result", "peak in MiB", title="Memory of a worker with images of 100 megapixels"
    )
    large, wide = _enlarged(LARGE), _enlarged(LARGE_WEBP)
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG": (large, "a.jpg", {"quality": 90}),
        "JPEG, progressive": (large, "b.jpg", {"quality": 90, "progressive": True}),
        "PNG, RGB": (large, "c.png", {"compress_level": 1}),
        "PNG, RGBA": (_with_alpha(large), "d.png", {"compress_level": 1}),
        "WebP": (wide, "e.webp", {"quality": 50, "method": 1}),
    }
    for kind, (image, name, options) in kinds.items():
        image.save(folder / name, **options)
        command = [sys.executable, "-c", MEMORY, str(folder / name)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        width, height, peak = done.stdout.split()
        size = (folder / name).stat().st_size / 2**20
        table.add_row(kind, f"{size:.0f}", f"{width} x {height}", f"{float(peak):.0f}")
    return table


def _enlarged(size: tuple[int, int]) -> Image.Image:
    """A photograph several times, turned each time, so that no line of it repeats as a compressor would notice."""
    pixels = np.asarray(photograph(0))
    line = np.hstack([pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1], pixels])
    return Image.fromarray(np.vstack([line, line[::-1], line])[: size[1], : size[0]])


def _with_alpha(image: Image.Image) -> Image.Image:
    result = image.copy()
    result.putalpha(image.getchannel("G"))
    return result

"""Drawing or editing images for one instruction, or for a list of them: what `omnitune generate` does."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.config import Benchmark
from omnitune.config.base import check_config
from omnitune.config.urls import with_networks
from omnitune.errors import ConfigError, Refused
from omnitune.evaluation.generate import generate, load_pipeline
from omnitune.evaluation.placement import Offload, place
from omnitune.evaluation.prompts import open_image, read_instructions
from omnitune.images.resize import to_pil
from omnitune.io.files import atomic_path, portable, sha256_of
from omnitune.io.jsonl import read_objects
from omnitune.io.model_files.weights import read_header, require_weights
from omnitune.io.places import check_url, is_local
from omnitune.io.storage import is_url
from omnitune.io.url_limits import fetching
from omnitune.models import DEFAULT_NEGATIVE_PROMPT, MAX_REFERENCE_IMAGES, OmniGen2Pipeline
from omnitune.models.lora.base_fingerprint import model_fingerprint
from omnitune.paths import adapter_file
from omnitune.pretrained.files import PARTS, check_parts
from omnitune.pretrained.weights import check_weights

logger = logging.getLogger("omnitune")

INSTRUCTION = "A dog running in the park"
OUTPUT, OUTPUT_FOLDER = Path("output.png"), Path("output")
NOT_FINITE = (
    "their numbers are not finite. The weights, or an adapter at this strength, are broken, or --dtype is too narrow."
)
# Options whose names are not those of the keys of a protocol.
OPTIONS = {
    "num_inference_steps": "num_inference_step",
    "cfg_range": "cfg_range_start and --cfg_range_end",
    "images_per_prompt": "num_images_per_prompt",
    "max_input_pixels": "max_input_image_pixels",
    "max_side_length": "max_input_image_side_length",
}
WRITTEN = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


@dataclass(frozen=True)
class Asked:
    """The options of the published inference script, and beside them transformer_lora_scale, prompts and batch_size."""

    model_path: str
    instruction: str | None
    prompts: Path | None
    batch_size: int
    input_image_path: Sequence[str] | None
    output_image_path: Path | None
    num_inference_step: int
    height: int
    width: int
    text_guidance_scale: float
    image_guidance_scale: float
    cfg_range_start: float
    cfg_range_end: float
    negative_prompt: str | None
    num_images_per_prompt: int
    max_input_image_pixels: int
    max_pixels: int
    max_input_image_side_length: int
    disable_align_res: bool
    transformer_path: Path | None
    transformer_lora_path: Sequence[Path] | None
    transformer_lora_scale: Sequence[float] | None
    scheduler: str
    seed: int
    dtype: str
    enable_model_cpu_offload: bool
    enable_sequential_cpu_offload: bool
    enable_group_offload: bool
    enable_teacache: bool
    teacache_rel_l1_thresh: float
    enable_taylorseer: bool
    private_network: Sequence[str] | None

    @property
    def adapters(self) -> list[tuple[Path, float]]:
        """Each with its strength; ValueError where there is not one strength for each, or none at all."""
        paths, scales = list(self.transformer_lora_path or ()), list(self.transformer_lora_scale or ())
        if scales and len(scales) != len(paths):
            raise ValueError(
                f"--transformer_lora_scale: {len(scales)} strengths for {len(paths)} adapters "
                "(--transformer_lora_path); give one for each, or none."
            )
        if not all(map(math.isfinite, scales)):
            raise ValueError(f"--transformer_lora_scale: {scales} is not allowed: needs numbers.")
        return list(zip(paths, scales or [1.0] * len(paths), strict=True))

    @property
    def offload(self) -> Offload | None:
        """Of several the one that the published script takes."""
        if self.enable_sequential_cpu_offload:
            return "sequential"
        return "model" if self.enable_model_cpu_offload else "group" if self.enable_group_offload else None

    @property
    def cache(self) -> str | None:
        """Over the steps; of two the one that the published script takes."""
        return "taylorseer" if self.enable_taylorseer else "teacache" if self.enable_teacache else None


def generate_images(asked: Asked) -> list[Path]:
    """Writes the images and returns their paths.

    One is output_image_path. Of several, {stem}_0, {stem}_1, .. are the images and output_image_path shows them side by
    side. With `prompts`, output_image_path is a folder: images/{key}.png, and parts/0.jsonl, which says what each is.

    Raises:
        ValueError, OSError: naming the option, for what does not go together or cannot be read; as far as it can be
            known before weights are loaded. For images whose numbers are not finite, which are not written.
    """
    _require_text(asked)
    output, settings = _output(asked), _settings(asked)
    prompts = read_instructions(asked.prompts, asked.num_images_per_prompt) if asked.prompts else []
    with fetching(with_networks(asked.private_network)):
        inputs = [_input_image(place) for place in _input_places(asked.input_image_path or ())]
    _check_weights(asked)
    pipeline = load_pipeline(
        asked.model_path,
        asked.transformer_path,
        asked.adapters,
        dtype=asked.dtype,
        scheduler=asked.scheduler,
        device="cpu",
    )
    weights = _described(asked, pipeline) if prompts else {}
    _prepare(pipeline, asked)
    if prompts:
        rows = [
            row
            for _, row in read_objects(
                generate(settings, prompts, pipeline, output, weights=weights, name=output.name, each_alone=True)
            )
        ]
        failed = [row["key"] for row in rows if row["image"] is None]
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(rows)} images were not drawn ({', '.join(failed[:10])}): {NOT_FINITE}"
            )
        logger.info("wrote %d images to %s", len(rows), output / "images")
        return [output / row["image"] for row in rows]
    return _save(_draw(pipeline, asked, inputs), output)


def _require_text(asked: Asked) -> None:
    """Raises ValueError for words that a shell has passed on in another encoding."""
    for option, text in (("instruction", asked.instruction), ("negative_prompt", asked.negative_prompt)):
        try:
            (text or "").encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"--{option}: is no text in UTF-8. Check the encoding of your terminal.") from None


def _input_image(place: str) -> Image.Image:
    """An image by its path, or by a URL under the limits that data sets have."""
    if is_url(place):
        try:
            check_url(place)
        except Refused as error:
            raise ValueError(f"--input_image_path: {error.message}.") from None
    return open_image(place)


def _output(asked: Asked) -> Path:
    """Where results go; ValueError for options that do not go together."""
    if asked.prompts and (asked.instruction is not None or asked.input_image_path):
        other = "--instruction" if asked.instruction is not None else "--input_image_path"
        raise ValueError(f"--prompts and {other}: give one of them; a line of a .jsonl may name input_images.")
    if asked.cache == "teacache" and asked.offload == "group":
        raise ValueError(
            "--enable_teacache and --enable_group_offload: this cache looks into a block that is off the GPU then; "
            "take --enable_model_cpu_offload or --enable_taylorseer."
        )
    path = asked.output_image_path or (OUTPUT_FOLDER if asked.prompts else OUTPUT)
    if asked.prompts and (path.suffix.lower() in WRITTEN or path.is_file()):
        raise ValueError(f"--output_image_path: {path} is no folder, which --prompts writes; name one.")
    if not asked.prompts and (path.suffix.lower() not in WRITTEN or path.is_dir()):
        raise ValueError(
            f"--output_image_path: {path} is no name of an image; end it with one of {', '.join(WRITTEN)}."
        )
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (above.is_dir() or above == path) or not os.access(above, os.W_OK):
        raise ValueError(
            f"--output_image_path: {path} cannot be written, as {above} is no folder of yours to write to."
        )
    return path


def _input_places(places: Sequence[str]) -> list[str]:
    """Paths or URLs of the input images; those of a folder that is named alone are its files, by name."""
    found = list(places)
    if len(found) == 1 and not is_url(found[0]) and Path(found[0]).is_dir():
        folder = Path(found[0])
        found = sorted(str(path) for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not found:
            raise ValueError(f"--input_image_path: {folder} holds no files.")
    if len(found) > MAX_REFERENCE_IMAGES:
        raise ValueError(
            f"--input_image_path: {len(found)} images; the model takes at most {MAX_REFERENCE_IMAGES}. Name fewer."
        )
    return found


def _check_weights(asked: Asked) -> None:
    """Raises ValueError, naming the option, for weights that are not there or damaged, before any are loaded.

    Naming the file, for what is not what its manifest says.
    """
    folders: list[Path] = []
    adapters = asked.adapters
    if is_local(asked.model_path, "--model_path"):
        parts = [part for part in PARTS if part != "transformer" or asked.transformer_path is None]
        check_parts(Path(asked.model_path), parts, "--model_path")
        folders += [Path(asked.model_path) / part for part in parts]
    if asked.transformer_path is not None:
        try:
            require_weights(asked.transformer_path)
        except ValueError as error:
            raise ValueError(f"--transformer_path: {error}") from None
        folders.append(asked.transformer_path)
    for lora, _ in adapters:
        if is_local(str(lora), "--transformer_lora_path"):
            read_header(adapter_file(str(lora)))
            folders.append(adapter_file(str(lora)).parent)
    check_weights(folders)


def _prepare(pipeline: OmniGen2Pipeline, asked: Asked) -> None:
    """Caches, and where the models are."""
    if asked.cache == "taylorseer":
        pipeline.enable_taylorseer()
    elif asked.cache == "teacache":
        pipeline.enable_teacache(asked.teacache_rel_l1_thresh)
    offload = asked.offload
    if offload and not torch.cuda.is_available():
        logger.warning("--enable_%s_offload: there is no GPU to take models off; it has no effect", _flag(offload))
        offload = None
    place(pipeline, offload)
    pipeline.set_progress_bar_config(disable=asked.prompts is not None)


def _flag(offload: Offload) -> str:
    return offload if offload == "group" else f"{offload}_cpu"


def _settings(asked: Asked) -> Benchmark:
    """The options as a protocol; ValueError, naming the option, for values that none has."""
    content = {
        "prompts": str(asked.prompts),
        "seed": asked.seed,
        "images_per_prompt": asked.num_images_per_prompt,
        "num_inference_steps": asked.num_inference_step,
        "scheduler": asked.scheduler,
        "text_guidance_scale": asked.text_guidance_scale,
        "image_guidance_scale": asked.image_guidance_scale,
        "cfg_range": (asked.cfg_range_start, asked.cfg_range_end),
        "negative_prompt": asked.negative_prompt,
        "height": asked.height,
        "width": asked.width,
        "align_res": not asked.disable_align_res,
        "max_pixels": asked.max_pixels,
        "max_input_pixels": asked.max_input_image_pixels,
        "max_side_length": asked.max_input_image_side_length,
        "dtype": asked.dtype,
        "batch_size": asked.batch_size,
        "loss_timesteps": 0,
    }
    try:
        return check_config(content, Benchmark, "options")
    except ConfigError as error:
        problems = [line.strip(" -").partition(":") for line in str(error).splitlines()[1:]]
        raise ValueError(" ".join(f"--{OPTIONS.get(key, key)}:{text}" for key, _, text in problems)) from None


def _described(asked: Asked, pipeline: OmniGen2Pipeline) -> dict[str, Any]:
    """What an image is kept by when a run goes on: the weights, and what stands in for some of them."""
    files = [(adapter_file(str(path)), scale) for path, scale in asked.adapters]
    threshold = asked.teacache_rel_l1_thresh if asked.cache == "teacache" else None
    return {
        "base": portable(Path(asked.model_path)),
        "transformer": portable(asked.transformer_path) if asked.transformer_path else None,
        "loras": [
            {"file": portable(path), "sha256": sha256_of(path) if path.is_file() else None, "scale": scale}
            for path, scale in files
        ],
        "fingerprint": model_fingerprint(pipeline.transformer),
        "cache": {"name": asked.cache, "threshold": threshold} if asked.cache else None,
    }


def _draw(pipeline: OmniGen2Pipeline, asked: Asked, inputs: list[Image.Image]) -> list[Image.Image]:
    output: Any = pipeline(
        prompt=INSTRUCTION if asked.instruction is None else asked.instruction,
        negative_prompt=DEFAULT_NEGATIVE_PROMPT if asked.negative_prompt is None else asked.negative_prompt,
        input_images=inputs or None,
        height=asked.height,
        width=asked.width,
        num_inference_steps=asked.num_inference_step,
        text_guidance_scale=asked.text_guidance_scale,
        image_guidance_scale=asked.image_guidance_scale,
        cfg_range=(asked.cfg_range_start, asked.cfg_range_end),
        align_res=not asked.disable_align_res,
        max_pixels=asked.max_pixels,
        max_input_image_pixels=asked.max_input_image_pixels,
        max_input_image_side_length=asked.max_input_image_side_length,
        num_images_per_prompt=asked.num_images_per_prompt,
        generator=torch.Generator().manual_seed(asked.seed),
        output_type="pt",
    )
    if not all(image.isfinite().all() for image in output.images):
        raise ValueError(f"no image was drawn: {NOT_FINITE}")
    return [to_pil(2 * image - 1) for image in output.images]


def _save(images: Sequence[Image.Image], path: Path) -> list[Path]:
    written = {path: images[0]}
    if len(images) > 1:
        written = {path.with_stem(f"{path.stem}_{number}"): image for number, image in enumerate(images)}
        written[path] = _side_by_side(images)
    for name, image in written.items():
        with atomic_path(name) as temporary:
            image.save(temporary, format=WRITTEN[name.suffix.lower()])
        logger.info("wrote %s (%d x %d)", name, *image.size)
    return list(written)


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    collage = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        collage.paste(image, (left, 0))
        left += image.width
    return collage

"""Drawing or editing images for one instruction: what `omnitune generate` does."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.errors import Refused
from omnitune.evaluation.generate import load_pipeline
from omnitune.evaluation.prompts import open_image
from omnitune.io.files import atomic_path
from omnitune.io.places import check_url, is_local
from omnitune.io.storage import is_url
from omnitune.io.url_limits import USUAL, fetching
from omnitune.io.weights import read_header, require_weights
from omnitune.models import DEFAULT_NEGATIVE_PROMPT, OmniGen2Pipeline
from omnitune.paths import adapter_file
from omnitune.pretrained.files import PARTS, check_parts

logger = logging.getLogger("omnitune")

WRITTEN = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def generate_images(
    *,
    model_path: str,
    instruction: str,
    input_image_path: Sequence[str] | None,
    output_image_path: Path,
    num_inference_step: int,
    height: int,
    width: int,
    text_guidance_scale: float,
    image_guidance_scale: float,
    cfg_range_start: float,
    cfg_range_end: float,
    negative_prompt: str | None,
    num_images_per_prompt: int,
    max_input_image_pixels: int,
    transformer_path: Path | None,
    transformer_lora_path: Path | None,
    scheduler: str,
    seed: int,
    dtype: str,
    enable_model_cpu_offload: bool,
) -> list[Path]:
    """Writes the images and returns their paths: output_image_path, or with several images {stem}_0, {stem}_1, ...

    The arguments are those of the published inference script. Raises ValueError or OSError for what cannot be loaded.
    """
    _check_output(output_image_path)
    _check_weights(model_path, transformer_path, transformer_lora_path)
    with fetching(USUAL):
        inputs = [_input_image(place) for place in input_image_path] if input_image_path else None
    weights = (model_path, transformer_path, transformer_lora_path)
    pipeline = _load(*weights, dtype=dtype, scheduler=scheduler, offload=enable_model_cpu_offload)
    output: Any = pipeline(
        prompt=instruction,
        negative_prompt=DEFAULT_NEGATIVE_PROMPT if negative_prompt is None else negative_prompt,
        input_images=inputs,
        height=height,
        width=width,
        num_inference_steps=num_inference_step,
        text_guidance_scale=text_guidance_scale,
        image_guidance_scale=image_guidance_scale,
        cfg_range=(cfg_range_start, cfg_range_end),
        max_pixels=max_input_image_pixels,
        num_images_per_prompt=num_images_per_prompt,
        generator=torch.Generator().manual_seed(seed),
        output_type="pil",
    )
    return _save(output.images, output_image_path)


def _input_image(place: str) -> Image.Image:
    """An image by its path, or by a URL under the limits that data sets have."""
    if is_url(place):
        try:
            check_url(place)
        except Refused as error:
            raise ValueError(f"--input_image_path: {error.message}.") from None
    return open_image(place)


def _check_output(path: Path) -> None:
    if path.suffix.lower() not in WRITTEN:
        raise ValueError(
            f"--output_image_path: {path} is no name of an image; end it with one of {', '.join(WRITTEN)}."
        )


def _check_weights(model: str, transformer: Path | None, lora: Path | None) -> None:
    """Raises ValueError, naming the option, for weights that are not there or damaged, before any are loaded."""
    if is_local(model, "--model_path"):
        parts = [part for part in PARTS if part != "transformer" or transformer is None]
        check_parts(Path(model), parts, "--model_path")
    if transformer is not None:
        try:
            require_weights(transformer)
        except ValueError as error:
            raise ValueError(f"--transformer_path: {error}") from None
    if lora is not None and is_local(str(lora), "--transformer_lora_path"):
        read_header(adapter_file(str(lora)))


def _load(
    model: str, transformer: Path | None, lora: Path | None, *, dtype: str, scheduler: str, offload: bool
) -> OmniGen2Pipeline:
    """The pipeline, on the GPU if there is one; with `offload` its models are there only while they work."""
    if offload and not torch.cuda.is_available():
        logger.warning("--enable_model_cpu_offload: there is no GPU to take models off; it has no effect")
        offload = False
    device = "cpu" if offload else None
    pipeline = load_pipeline(model, transformer, lora, dtype=dtype, scheduler=scheduler, device=device)
    if offload:
        pipeline.enable_model_cpu_offload()
    pipeline.set_progress_bar_config(disable=False)
    return pipeline


def _save(images: Sequence[Image.Image], path: Path) -> list[Path]:
    names = [path] if len(images) == 1 else [path.with_stem(f"{path.stem}_{i}") for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        with atomic_path(name) as temporary:
            image.save(temporary, format=WRITTEN[name.suffix.lower()])
        logger.info("wrote %s (%d x %d)", name, *image.size)
    return names

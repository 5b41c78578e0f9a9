"""What a call of the pipeline is given, brought to one entry for each prompt or image."""

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from omnitune.images.resize import to_rgb
from omnitune.models.transformer.inputs import MAX_REFERENCE_IMAGES

OUTPUT_TYPES = ("pil", "pt", "np", "latent")

Reference = Image.Image | DiagonalGaussianDistribution
ImageList = list[Reference]
Features = torch.Tensor


def check_outputs(output_type: str, num_images_per_prompt: int) -> None:
    """Raises ValueError for a kind or a number of images that cannot be given."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type = {output_type!r} must be one of {', '.join(OUTPUT_TYPES)}")
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt = {num_images_per_prompt} must be at least 1")


def one_each(value: Any, count: int, name: str) -> list[Any]:
    """A list of `count` values: the given list, or one value for all."""
    if not isinstance(value, list):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} entries, but {count} are needed: give one for all or one for each")
    return value


def count_prompts(prompt: str | list[str] | None, prompt_embeds: torch.Tensor | list[Features] | None) -> int:
    """The number of prompts; ValueError unless they are given in one way, and are some."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("give exactly one of prompt and prompt_embeds")
    if prompt_embeds is not None:
        return len(prompt_embeds)
    if isinstance(prompt, str):
        return 1
    if not isinstance(prompt, list) or not prompt or not all(isinstance(entry, str) for entry in prompt):
        raise ValueError(f"prompt = {prompt!r} must be a text or a non-empty list of texts")
    return len(prompt)


def images_per_prompt(input_images: Any, count: int, single: bool) -> list[ImageList]:
    """Reference images as one list for each prompt, upright and RGB, or their posteriors."""
    if input_images is None:
        return [[] for _ in range(count)]
    if isinstance(input_images, Reference):
        input_images = [input_images]
    if single and not any(isinstance(entry, list | tuple) for entry in input_images):
        input_images = [input_images]
    if len(input_images) != count:
        raise ValueError(
            f"input_images has {len(input_images)} entries for {count} prompts: give one list for each prompt"
        )
    images = []
    for i, entry in enumerate(input_images):
        own = [] if entry is None else [entry] if isinstance(entry, Reference) else list(entry)
        if len(own) > MAX_REFERENCE_IMAGES:
            raise ValueError(f"prompt {i} has {len(own)} input_images: the model takes at most {MAX_REFERENCE_IMAGES}")
        for image in own:
            if not isinstance(image, Reference):
                raise ValueError(f"input_images of prompt {i} holds a {type(image).__name__}: give PIL images")
        images.append([to_rgb(image) if isinstance(image, Image.Image) else image for image in own])
    return images

"""The OmniGen2 pipeline: instruction and reference images to an image (arXiv 2506.18871), in diffusers style.

A call takes one prompt or a list. Samples of a list may have images of different sizes and numbers; all of them, and
their guidance predictions, share one transformer call per step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from accelerate.hooks import CpuOffload
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from omnitune.images.resize import resize, target_size, to_pil, to_rgb, to_tensor
from omnitune.io.files import write_json
from omnitune.io.model_files.hub import download
from omnitune.io.places import is_local
from omnitune.models.components import COMPONENTS, LOADERS, model_index, require_parts
from omnitune.models.guidance import Branches, Sample
from omnitune.models.lora.lora import OmniGen2LoraLoaderMixin
from omnitune.models.pipeline_inputs import (
    Features,
    ImageList,
    Reference,
    check_outputs,
    count_prompts,
    images_per_prompt,
    one_each,
)
from omnitune.models.scheduler import OmniGen2FlowMatchScheduler
from omnitune.models.text.features import encode_text, unpadded
from omnitune.models.transformer.step_cache import OmniGen2StepCacheMixin
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Transformer2DModel

DEFAULT_LATENT_SIDE = 128
Callback = Callable[[Any, int, list[float], dict[str, Any]], dict[str, Any] | None]


class OmniGen2Pipeline(DiffusionPipeline, OmniGen2LoraLoaderMixin, OmniGen2StepCacheMixin):
    """Generates and edits images.

    Args:
        transformer: OmniGen2Transformer2DModel.
        vae: AutoencoderKL of FLUX (or a smaller one).
        scheduler: OmniGen2FlowMatchScheduler or OmniGen2DPMSolverScheduler.
        mllm: Qwen2_5_VLForConditionalGeneration or Qwen2_5_VLModel; only its text model is used.
        processor: its tokenizer, or an object with a `tokenizer`.
    """

    model_cpu_offload_seq = "mllm->transformer->vae"  # type: ignore[assignment]
    transformer: Any
    vae: Any
    scheduler: Any
    mllm: Any
    processor: Any

    def __init__(
        self,
        transformer: OmniGen2Transformer2DModel,
        vae: Any,
        scheduler: OmniGen2FlowMatchScheduler,
        mllm: Any,
        processor: Any,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler, mllm=mllm, processor=processor)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.size_multiple = self.vae_scale_factor * transformer.config.patch_size
        self.set_progress_bar_config(disable=True)  # set_progress_bar_config(disable=False) shows it

    # ------------------------------------------------------------------ folders

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **components: Any,
    ) -> "OmniGen2Pipeline":
        """Load a folder in the published layout, or the repository with this id.

        The classes are ours, whatever model_index.json names: no code of the folder runs.

        Args:
            pretrained_model_name_or_path: folder, or repository id.
            torch_dtype: of transformer, VAE and text model; None means float32.
            revision, cache_dir, local_files_only, token: for a repository, as in huggingface_hub.snapshot_download.
            components: ready components (transformer, vae, scheduler, mllm, processor) in place of the folder's.

        Raises:
            ValueError: for an unknown component name, a path that does not exist, a failed download, or damaged files.
            FileNotFoundError: naming the part that the folder lacks.
        """
        unknown = set(components) - set(COMPONENTS)
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no components of this pipeline: use {', '.join(COMPONENTS)}")
        folder = Path(pretrained_model_name_or_path)
        if not is_local(str(folder), "pretrained_model_name_or_path"):
            folder = download(
                str(folder),
                revision,
                "pretrained_model_name_or_path",
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                token=token,
                ignore_patterns=["*.py", "assets/*", "*.png", "*.jpg"],
            )
        missing = [name for name in COMPONENTS if name not in components]
        require_parts(folder, ["model_index.json", *missing])
        loaded = {name: LOADERS[name](folder, torch_dtype or torch.float32) for name in missing}
        return cls(**components, **loaded)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | Path, max_shard_size: str = "10GB"
    ) -> None:
        """Write the published layout: a folder per component, and model_index.json last, so that it marks completeness.

        Args:
            save_directory: made where it is missing.
            max_shard_size: of one weight file.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("transformer", "vae", "mllm"):
            getattr(self, name).save_pretrained(folder / name, max_shard_size=max_shard_size)
        self.processor.save_pretrained(folder / "processor")
        self.scheduler.save_pretrained(folder / "scheduler")
        write_json(folder / "model_index.json", model_index(folder))

    # ------------------------------------------------------------------ parts of a call

    def encode_prompt(self, prompt: Sequence[str], max_sequence_length: int = 1024) -> list[Features]:
        """Text features [length, D] of each prompt, without padding, on the execution device."""
        _bring_in(self.mllm)
        features, mask = encode_text(
            self.mllm, self.processor, prompt, max_length=max_sequence_length, device=self._execution_device
        )
        return unpadded(features, mask)

    def encode_posterior(
        self, image: Image.Image, max_pixels: int = 1024 * 1024, max_side_length: int = 1024
    ) -> DiagonalGaussianDistribution:
        """The VAE's posterior of an image, brought within the limits; a call takes it in the image's place."""
        image = to_rgb(image)
        size = target_size(*image.size, max_pixels, max_side_length, self.size_multiple)
        pixels = to_tensor(resize(image, size))[None]
        posterior: DiagonalGaussianDistribution = self.vae.encode(
            pixels.to(self._execution_device, self.vae.dtype)
        ).latent_dist
        return posterior

    def encode_image(
        self,
        image: Reference,
        generators: Sequence[torch.Generator | None],
        max_pixels: int = 1024 * 1024,
        max_side_length: int = 1024,
    ) -> list[torch.Tensor]:
        """Latents [C, h, w] of a reference image or its posterior: one draw from that per generator."""
        if isinstance(image, Image.Image):
            image = self.encode_posterior(image, max_pixels, max_side_length)
        return [self.scale_latent(image.sample(generator)) for generator in generators]

    def scale_latent(self, latent: torch.Tensor) -> torch.Tensor:
        """What the transformer takes, [C, h, w] in float32, of a latent [1, C, h, w] as the VAE gives it."""
        config = self.vae.config
        return (latent[0].float() - (config.shift_factor or 0.0)) * config.scaling_factor

    def decode_latent(self, latent: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Pixels [3, H, W] in [-1, 1], float32, of a latent [C, h, w]; size (width, height) scales them (bilinear)."""
        vae, config = self.vae, self.vae.config
        z = latent[None] / config.scaling_factor + (config.shift_factor or 0.0)
        pixels = vae.decode(z.to(vae.dtype)).sample.float()
        if size is not None and size != (pixels.shape[-1], pixels.shape[-2]):
            pixels = F.interpolate(pixels, size=size[::-1], mode="bilinear")
        return pixels[0].clamp(-1, 1)

    # ------------------------------------------------------------------ the call

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        input_images: Any = None,
        height: int | list[int] | None = None,
        width: int | list[int] | None = None,
        num_inference_steps: int = 28,
        text_guidance_scale: float = 4.0,
        image_guidance_scale: float = 1.0,
        cfg_range: tuple[float, float] = (0.0, 1.0),
        max_pixels: int = 1024 * 1024,
        max_input_image_pixels: int | None = None,
        max_input_image_side_length: int = 1024,
        align_res: bool = True,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        num_images_per_prompt: int = 1,
        max_sequence_length: int = 1024,
        prompt_embeds: torch.Tensor | list[Features] | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | list[Features] | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        timesteps: list[float] | None = None,
        callback_on_step_end: Callback | None = None,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Generate images.

        Args:
            prompt: one instruction, or a list; or None with prompt_embeds.
            negative_prompt: one for all or one each; None means "". See DEFAULT_NEGATIVE_PROMPT.
            input_images: reference images of the prompt, up to five; for a list of prompts a list of such lists.
            height, width: of the result, for all or for each prompt; default 128 times the VAE's factor (1024).
            num_inference_steps: steps of the sampler.
            text_guidance_scale: weight of the prompt against the negative prompt; 1 turns all guidance off.
            image_guidance_scale: weight of the references, where a sample has any; 1 turns it off.
            cfg_range: guidance acts at steps i with cfg_range[0] <= i / steps <= cfg_range[1].
            max_pixels: limit of width * height of the result while it is made, and of references.
            max_input_image_pixels: another limit of references.
            max_input_image_side_length: limit of a reference's longer side.
            align_res: a sample with exactly one reference gets that reference's size (as resized), whatever max_pixels.
            latents: start noise [N, C, h, w], or a list of N [C, h, w], N = prompts * num_images_per_prompt.
            generator: for the noise and the references' posteriors; a list has one for each image. Give a list where
                a sample must not depend on which others it is generated with.
            output_type: "pil", "np" ([N, H, W, 3] in [0, 1]), "pt" ([N, 3, H, W] in [0, 1]) or "latent"; the last three
                are lists where sizes differ.
            num_images_per_prompt: images for each prompt, next to each other.
            max_sequence_length: longer instructions are cut, in tokens.
            prompt_embeds, prompt_attention_mask: features [B, L, D] with mask [B, L], or a list of B features
                [length, D], in place of prompt.
            negative_prompt_embeds, negative_prompt_attention_mask: the same for negative_prompt.
            attention_kwargs: `{"scale": s}` scales LoRA layers.
            timesteps: times of one's own in place of num_inference_steps.
            callback_on_step_end: called as (pipeline, step, times of the samples, {"latents": list}); may return a dict
                with other latents.
            return_dict: False returns a tuple of one.

        Returns:
            `images`.

        Raises:
            ValueError: naming the argument, its value and what would fit.
        """
        # 1. Check inputs, and bring them to one entry per prompt
        count = count_prompts(prompt, prompt_embeds)
        check_outputs(output_type, num_images_per_prompt)
        images = images_per_prompt(input_images, count, single=isinstance(prompt, str))
        generators = one_each(generator, count * num_images_per_prompt, "generator")
        limits = (max_pixels if max_input_image_pixels is None else max_input_image_pixels, max_input_image_side_length)

        # 2. Encode texts
        texts = self._features(prompt, prompt_embeds, prompt_attention_mask, count, max_sequence_length)
        negative = "" if negative_prompt is None else negative_prompt
        negatives = self._features(
            negative, negative_prompt_embeds, negative_prompt_attention_mask, count, max_sequence_length
        )

        # 3. Sizes, noise, references and a scheduler for each image
        sizes = self._sizes(images, height, width, align_res, max_pixels, limits)
        noises = self._noises(latents, [inner for _, inner in sizes], generators, num_images_per_prompt)
        references = self._references(images, generators, limits)
        schedulers = self._schedulers(noises, num_inference_steps, timesteps)
        own = [i for i in range(count) for _ in range(num_images_per_prompt)]  # the prompt of each image
        samples = [
            Sample(texts[i], negatives[i], references[k], noises[k], sizes[i][0], schedulers[k])
            for k, i in enumerate(own)
        ]

        # 4. Steps, and decoding
        scales = (text_guidance_scale, image_guidance_scale)
        self._denoise(samples, scales, cfg_range, attention_kwargs, callback_on_step_end)
        output = self._output(samples, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _denoise(
        self,
        samples: list[Sample],
        scales: tuple[float, float],
        cfg_range: tuple[float, float],
        attention_kwargs: dict[str, Any] | None,
        callback: Callback | None,
    ) -> None:
        """Take every sample's latent through all steps; scales are those of text and image."""
        total = len(samples[0].scheduler.timesteps)
        self._forget_steps()
        for i in self.progress_bar(range(total)):
            guided = cfg_range[0] <= i / total <= cfg_range[1]
            times = [float(sample.scheduler.timesteps[i]) for sample in samples]
            exact = i in (0, total - 1)
            velocities = self._predict(samples, times, scales if guided else (1.0, 1.0), exact, attention_kwargs)
            for sample, time, velocity in zip(samples, times, velocities, strict=True):
                sample.latent = sample.scheduler.step(velocity, time, sample.latent, return_dict=False)[0]
            if callback is not None:
                changed = callback(self, i, times, {"latents": [sample.latent for sample in samples]}) or {}
                for sample, latent in zip(samples, changed.get("latents", ()), strict=False):
                    sample.latent = latent

    def _predict(
        self,
        samples: list[Sample],
        times: list[float],
        scales: tuple[float, float],
        exact: bool,
        attention_kwargs: dict[str, Any] | None,
    ) -> list[torch.Tensor]:
        """Guided velocity of every sample, from one transformer call; with `exact` no cache stands in for layers."""
        branches = Branches.of(samples, *scales)
        features, mask = branches.padded_texts()
        with self._step(branches.keys, exact):
            outputs = self.transformer(
                [samples[i].latent for i in branches.samples],
                torch.tensor([times[i] for i in branches.samples], device=features.device),
                features,
                mask,
                branches.references,
                attention_kwargs=attention_kwargs,
            ).sample
        return branches.guided(outputs, *scales)

    def _features(
        self,
        text: str | list[str] | None,
        embeds: torch.Tensor | list[Features] | None,
        mask: torch.Tensor | None,
        count: int,
        max_length: int,
    ) -> list[Features]:
        """Features of one text for all, or of one each, encoding equal texts once; or the given embeddings."""
        if isinstance(embeds, list):
            return [features.to(self._execution_device) for features in one_each(embeds, count, "embeddings")]
        if embeds is not None:
            if len(embeds) != count or (mask is not None and mask.shape != embeds.shape[:2]):
                shape = None if mask is None else tuple(mask.shape)
                raise ValueError(
                    f"embeddings {tuple(embeds.shape)} with mask {shape}: give [{count}, L, D] and [{count}, L]"
                )
            mask = torch.ones(embeds.shape[:2]) if mask is None else mask
            return unpadded(embeds.to(self._execution_device), mask)
        texts = one_each(text, count, "negative_prompt")
        unique = list(dict.fromkeys(texts))
        features = dict(zip(unique, self.encode_prompt(unique, max_length), strict=True))
        return [features[entry] for entry in texts]

    def _sizes(
        self,
        images: list[ImageList],
        height: int | list[int] | None,
        width: int | list[int] | None,
        align_res: bool,
        max_pixels: int,
        limits: tuple[int, int],
    ) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """For each prompt the asked and the generated size, (width, height) in pixels; limits are of references."""
        default, count = DEFAULT_LATENT_SIDE * self.vae_scale_factor, len(images)
        heights = one_each(default if height is None else height, count, "height")
        widths = one_each(default if width is None else width, count, "width")
        sizes = []
        for own, w, h in zip(images, widths, heights, strict=True):
            if align_res and len(own) == 1:
                size = self._size_of(own[0], limits)
                sizes.append((size, size))
            else:
                sizes.append(((w, h), target_size(w, h, max_pixels, max(w, h), self.size_multiple)))
        return sizes

    def _size_of(self, image: Reference, limits: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels of a reference as it is encoded."""
        if isinstance(image, Image.Image):
            return target_size(*image.size, *limits, self.size_multiple)
        height, width = image.mean.shape[-2:]
        return width * self.vae_scale_factor, height * self.vae_scale_factor

    def _references(
        self, images: list[ImageList], generators: list[torch.Generator | None], limits: tuple[int, int]
    ) -> list[list[torch.Tensor]]:
        """For each generator, and so for each image of each prompt, latents of all references of its prompt."""
        references, each = [], len(generators) // len(images)
        for i, own in enumerate(images):
            drawing = generators[i * each : (i + 1) * each]
            draws = [self.encode_image(image, drawing, *limits) for image in own]
            references += [[drawn[k] for drawn in draws] for k in range(each)]
        return references

    def _noises(
        self,
        latents: torch.Tensor | list[torch.Tensor] | None,
        sizes: list[tuple[int, int]],
        generators: list[torch.Generator | None],
        per_prompt: int,
    ) -> list[torch.Tensor]:
        """Start noise [C, h, w] in float32 of every image, drawn or given."""
        channels, factor = self.transformer.config.in_channels, self.vae_scale_factor
        shapes = [(channels, h // factor, w // factor) for w, h in sizes for _ in range(per_prompt)]
        if latents is None:
            return [
                randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
                for shape, generator in zip(shapes, generators, strict=True)
            ]
        given = [tuple(latent.shape) for latent in latents]
        if given != shapes:
            raise ValueError(f"latents have the shapes {given}, the images to generate {shapes}: they must be equal")
        return [latent.to(self._execution_device, torch.float32) for latent in latents]

    def _schedulers(self, noises: list[torch.Tensor], steps: int, timesteps: list[float] | None) -> list[Any]:
        schedulers = [type(self.scheduler).from_config(self.scheduler.config) for _ in noises]
        for noise, scheduler in zip(noises, schedulers, strict=True):
            tokens = noise.shape[-2] * noise.shape[-1]
            scheduler.set_timesteps(None if timesteps else steps, timesteps=timesteps, num_tokens=tokens)
        return schedulers

    def _output(self, samples: list[Sample], output_type: str) -> Any:
        if output_type == "latent":
            return _stack([sample.latent for sample in samples])
        pixels = [self.decode_latent(sample.latent, sample.size) for sample in samples]
        if output_type == "pil":
            return [to_pil(image) for image in pixels]
        pixels = [(image + 1) / 2 for image in pixels]
        if output_type == "pt":
            return _stack(pixels)
        arrays = [image.permute(1, 2, 0).cpu().numpy() for image in pixels]
        return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays


def _bring_in(model: Any) -> None:
    """Move an offloaded model to its device; for calls that go around its forward, which would do it."""
    hook = getattr(model, "_hf_hook", None)
    if isinstance(hook, CpuOffload):
        hook.pre_forward(model)


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors

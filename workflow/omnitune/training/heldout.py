"""Validation while training: held-out loss at fixed times with fixed noise, and images of fixed prompts."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from omnitune.config import ExperimentOptions
from omnitune.distributed import parallel
from omnitune.errors import Refused
from omnitune.images.prepare import ImageLimits, read_rgb, to_tensor
from omnitune.images.resize import resize, target_size
from omnitune.io.files import atomic_path, json_line, write_text
from omnitune.models import OmniGen2Pipeline
from omnitune.models.components import load_scheduler
from omnitune.models.encoder import FrozenEncoder, latent_scaling
from omnitune.paths import PROMPTS_FILE
from omnitune.training.flow_matching import Conditioned, pad_text, seed_of, velocity_errors
from omnitune.validation.heldout import read_heldout_rows


@dataclass(frozen=True)
class HeldOut:
    """A held-out sample: `key` (file and line), task type, instruction, and images within limits, the output last."""

    key: str
    task_type: str
    instruction: str
    images: list[Image.Image]


def read_heldout(
    path: Path, limit: int, limits: ImageLimits, instruction_keys: Sequence[str] = ("instruction",)
) -> list[HeldOut]:
    """The first samples of a .jsonl file, in the format of training samples; keys that are no part of it are ignored.

    Raises:
        ValueError: with file and line, for a file, line or image that cannot be read.
    """
    samples: list[HeldOut] = []
    for row in read_heldout_rows(path, limit, instruction_keys):
        try:
            input_limit = limits.input_limit(len(row.images) - 1)
            images = [_image(image, input_limit, limits) for image in row.images[:-1]]
            images.append(_image(row.images[-1], limits.max_output_pixels, limits))
        except Refused as error:
            raise ValueError(f"{row.where}: {error.message}.") from None
        except (OSError, ValueError, SyntaxError) as error:  # what image readers raise
            raise ValueError(f"{row.where}: {error}.") from None
        samples.append(HeldOut(row.key, row.task_type, row.instruction, images))
    return samples


def _image(path: Path, max_pixels: int, limits: ImageLimits) -> Image.Image:
    image = read_rgb(path)
    return resize(image, target_size(*image.size, max_pixels, limits.max_side_length))


class Validation:
    """Held-out samples, encoded once; every process computes its share of them, in as many forwards as the others.

    Args:
        options: its `val` section and the limits of images.
        base: pipeline folder with VAE, text encoder and tokenizer, which are loaded to encode and left out again.
        device: of the model.
        rank, world_size: which share is this process's.
    """

    def __init__(
        self, options: ExperimentOptions, base: Path, device: torch.device, rank: int, world_size: int
    ) -> None:
        assert options.val.data_path is not None
        self.options, self.val, self.device = options, options.val, device
        self.rank, self.world_size = rank, world_size
        path = Path(options.val.data_path)
        count = max(self.val.max_samples, self.val.visualization_samples)
        self.samples = read_heldout(
            path, count, ImageLimits(**options.data.image_limits), options.data.instruction_keys
        )
        encoder = self._encoder(base)
        scaling = latent_scaling(base)
        work = self._share(self._times())
        own = {sample.key: sample for sample, _ in work}
        encoded = {key: self._encoded(encoder, sample, scaling) for key, sample in own.items()}
        self.work = [self._conditioned(sample, time, *encoded[sample.key]) for sample, time in work]
        self.shown = self._share(self.samples[: self.val.visualization_samples])
        self.texts = [text.float() for text in encoder.texts([sample.instruction for sample in self.shown])]
        self.empty = encoder.texts([""], True)[0].float()
        self.vae, self.scheduler = encoder.vae, load_scheduler(base)

    def _encoder(self, base: Path) -> FrozenEncoder:
        data, train = self.options.data, self.options.train
        bf16 = data.encoded_precision == "bf16" if data.encode else train.mixed_precision == "bf16"
        return FrozenEncoder(
            base,
            self.device,
            text_dtype=torch.bfloat16 if bf16 else torch.float32,
            max_text_tokens=data.maximum_text_tokens,
            use_chat_template=data.use_chat_template,
            batch_pixels=data.max_output_pixels,
        )

    def _times(self) -> list[tuple[HeldOut, float]]:
        """Each sample of the loss with each of its times, (i + 0.5) / n; t = 1 is data."""
        count = self.val.validation_timesteps
        times = [(i + 0.5) / count for i in range(count)]
        return [(sample, time) for sample in self.samples[: self.val.max_samples] for time in times]

    def _share(self, items: list[Any]) -> list[Any]:
        """This process's items, as many as the others'; what is there twice is counted once."""
        each = -(-len(items) // self.world_size)
        return [items[(self.rank + k * self.world_size) % len(items)] for k in range(each)]

    def _is_own(self, position: int, total: int) -> bool:
        """Whether the share's item stands for itself, and does not fill up the last round."""
        return self.rank + position * self.world_size < total

    def _encoded(
        self, encoder: FrozenEncoder, sample: HeldOut, scaling: tuple[float, float]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Latents [C, h, w] of its images, the output last, and the features [L, C] of its instruction."""
        shift, scale = scaling
        modes = [mean for mean, _ in encoder.posteriors([to_tensor(image) for image in sample.images])]
        return [(mode - shift) * scale for mode in modes], encoder.texts([sample.instruction])[0].float()

    def _conditioned(
        self, sample: HeldOut, time: float, latents: list[torch.Tensor], text: torch.Tensor
    ) -> Conditioned:
        *references, target = latents
        seed = seed_of(self.options.seed, "validation", sample.key, str(time))
        noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(seed)).to(target)
        return Conditioned(target, references, text, noise, torch.tensor(time), seed, sample.key, sample.task_type)

    @torch.no_grad()
    def losses(self, model: nn.Module, autocast: AbstractContextManager[Any]) -> dict[str, Any]:
        """Mean squared error of the velocity over held-out samples and times: `val_loss`, and `val_loss_by_task`."""
        total = min(self.val.max_samples, len(self.samples)) * self.val.validation_timesteps
        tasks = sorted({sample.task_type for sample in self.samples[: self.val.max_samples]})
        sums = torch.zeros(len(tasks), 2, dtype=torch.float64, device=self.device)
        size = self.options.train.batch_size
        model.eval()
        with autocast:
            for start in range(0, len(self.work), size):
                batch = self.work[start : start + size]
                times = torch.stack([sample.draw for sample in batch if sample.draw is not None]).to(self.device)
                errors = velocity_errors(model, batch, times)
                for position, (sample, error) in enumerate(zip(batch, errors, strict=True), start=start):
                    if self._is_own(position, total):
                        sums[tasks.index(sample.task_type)] += torch.stack(
                            [error, error.new_tensor(sample.target.numel())]
                        )
        model.train()
        found = parallel.sum_over_processes(sums).tolist()
        return {
            "val_loss": sum(error for error, _ in found) / sum(count for _, count in found),
            "val_loss_by_task": {task: error / count for task, (error, count) in zip(tasks, found, strict=True)},
        }

    @torch.no_grad()
    def draw(self, model: nn.Module, autocast: AbstractContextManager[Any], samples: Path, step: int) -> list[Path]:
        """Draws the images of fixed prompts from fixed noise; every process knows all paths.

        Args:
            model: the transformer.
            autocast: precision of its forward.
            samples: the folder of all such images: this draws {step:08d}/{key}.png below it, and beside these folders
                lie the prompts (see `_write_prompts`).
            step: after which it is.
        """
        folder = samples / f"{step:08d}"
        if self.rank == 0:
            self._write_prompts(samples)
        model.eval()
        transformer = parallel.unwrapped(model)
        pipeline = OmniGen2Pipeline(transformer, self.vae, self.scheduler, None, None)
        features, mask = pad_text(self.texts)
        seeds = [seed_of(self.options.seed, "sample", sample.key) for sample in self.shown]
        with autocast:
            output: Any = pipeline(
                prompt_embeds=features,
                prompt_attention_mask=mask,
                negative_prompt_embeds=self.empty.expand(len(self.shown), -1, -1),
                input_images=[sample.images[:-1] for sample in self.shown],
                height=[sample.images[-1].height for sample in self.shown],
                width=[sample.images[-1].width for sample in self.shown],
                max_pixels=max(image.width * image.height for sample in self.samples for image in sample.images),
                max_input_image_side_length=self.options.data.max_side_length,
                num_inference_steps=self.val.num_inference_steps,
                text_guidance_scale=self.val.text_guidance_scale,
                image_guidance_scale=self.val.image_guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            )
        model.train()
        total = min(self.val.visualization_samples, len(self.samples))
        for position, (sample, image) in enumerate(zip(self.shown, output.images, strict=True)):
            if self._is_own(position, total):
                _write_image(image, folder / f"{sample.key}.png")
        parallel.gather(None)  # all images are there
        return [folder / f"{sample.key}.png" for sample in self.samples[:total]]

    def _write_prompts(self, samples: Path) -> None:
        """prompts.jsonl, what the images are of, and inputs/{key}-{k}.png, the references as the model gets them."""
        lines = []
        for sample in self.samples[: self.val.visualization_samples]:
            inputs = [f"inputs/{sample.key}-{k}.png" for k in range(len(sample.images) - 1)]
            for name, image in zip(inputs, sample.images, strict=False):
                if not (samples / name).is_file():
                    _write_image(image, samples / name)
            row = {
                "key": sample.key,
                "task_type": sample.task_type,
                "instruction": sample.instruction,
                "inputs": inputs,
            }
            lines.append(json_line(row))
        write_text(samples / PROMPTS_FILE, "".join(lines))


def _write_image(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def due(step: int, every: int, last: int) -> bool:
    """Whether something that is done every so many steps (0: never) is done after this one; always after the last."""
    return every > 0 and (step % every == 0 or step == last)

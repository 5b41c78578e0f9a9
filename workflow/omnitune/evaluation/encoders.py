"""Models that measures need, by transformers: what they make of images and texts.

Images are prepared by the processors that work with Pillow, as torchvision is not there.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.config import Benchmark
from omnitune.config.choices import MEASURES
from omnitune.errors import reason_of
from omnitune.evaluation.model_files import NotThereError, find_model

logger = logging.getLogger("omnitune")


@dataclass(frozen=True)
class Encoder:
    """A model with what prepares its inputs.

    Attributes:
        model: of transformers.
        processor: of images.
        tokenizer: of texts; None where the model takes images alone.
    """

    model: Any
    processor: Any
    tokenizer: Any = None

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Unit vectors [N, D]: `features`, scaled."""
        return _unit(self.features(images))

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Features [N, D], float32: projected ones, or the state of the class token where there is no projection."""
        pixels = self.processor(list(images), return_tensors="pt").to(self.model.device)
        if hasattr(self.model, "get_image_features"):
            return _pooled(self.model.get_image_features(**pixels)).float().cpu()
        return self.model(**pixels).last_hidden_state[:, 0].float().cpu()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors [N, D]; what is longer than the model reads is cut off."""
        longest = self.model.config.text_config.max_position_embeddings
        # SigLIP was trained on padded texts and has no mask for the padding.
        padding = "max_length" if "siglip" in self.model.config.model_type else True
        tokens = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        return _unit(_pooled(self.model.get_text_features(**tokens)))


def load_text_image(folder: Path) -> Encoder:
    """A CLIP or SigLIP."""
    from transformers import AutoTokenizer

    encoder = load_image(folder)
    if not hasattr(encoder.model, "get_text_features"):
        raise NotThereError(f"{folder} holds a {type(encoder.model).__name__}, which takes no texts")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return Encoder(encoder.model, encoder.processor, tokenizer)


def load_image(folder: Path) -> Encoder:
    """A DINO, or any other that turns images into features."""
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    tokens = any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters())
    if not tokens and not hasattr(model, "get_image_features"):
        raise NotThereError(f"{folder} holds a {type(model).__name__}, which makes no one vector of an image")
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    return Encoder(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor)


def load_models(benchmark: Benchmark) -> tuple[dict[str, Any], dict[str, str]]:
    """What the measures of a benchmark need: models by measure, and of those that are not there why."""
    models: dict[str, Any] = {}
    absent: dict[str, str] = {}
    load = cache(lambda loader, folder: loader(folder))  # measures share what they have in common
    for entry in benchmark.measured:
        if entry.model is None:
            continue
        try:
            models[entry.name] = load(MEASURES[entry.name].load_model, find_model(entry.model))
        except Exception as error:  # the library raises anything where files are missing or of another kind
            own = isinstance(error, NotThereError)
            absent[entry.name] = str(error) if own else f"model: {entry.model}: {reason_of(error)}"
            logger.warning("not measured: %s (%s)", entry.name, absent[entry.name])
    return models, absent


def _pooled(output: Any) -> torch.Tensor:
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    assert isinstance(features, torch.Tensor)
    return features


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()

"""Models that measures need, by transformers: what they make of images and texts.

Images are prepared by the processors that work with Pillow, as torchvision is not there.
"""

import logging
import math
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
from omnitune.evaluation.model_files import NotThereError, find_model, label_index
from omnitune.models.files import load_whole

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

    def logit(self, likeness: float) -> float:
        """What the model makes of the cosine of an image and a text: times its scale, plus its bias where it has one.

        Of PickScore and others that were trained on people's choices, it is their score.
        """
        bias = self.model.logit_bias.item() if hasattr(self.model, "logit_bias") else 0.0
        return likeness * math.exp(self.model.logit_scale.item()) + bias


@dataclass(frozen=True)
class Classifier:
    """A model that scores an image alone.

    Attributes:
        model: of transformers.
        processor: of images.
        index: of the output that counts; None of a regression, which has one.
    """

    model: Any
    processor: Any
    index: int | None

    @torch.inference_mode()
    def score(self, image: Image.Image) -> float:
        """The probability of a label, or the value of a regression."""
        pixels = self.processor([image], return_tensors="pt").to(self.model.device)
        [logits] = self.model(**pixels).logits.float().cpu()
        if self.index is None:
            return float(logits[0])
        each = self.model.config.problem_type == "multi_label_classification"
        return float((logits.sigmoid() if each else logits.softmax(-1))[self.index])


def load_classifier(folder: Path, label: str | None) -> Classifier:
    """An image classifier with such a label, or a regression where that is None."""
    from transformers import AutoModelForImageClassification

    encoder = Encoder(*_loaded(AutoModelForImageClassification, folder))
    return Classifier(encoder.model, encoder.processor, label_index(encoder.model.config.id2label, label, folder))


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
    from transformers import AutoModel

    model, processor = _loaded(AutoModel, folder, unused="pooler.")
    tokens = any(name.endswith(("cls_token", "class_embedding")) for name, _ in model.named_parameters())
    if not tokens and not hasattr(model, "get_image_features"):
        raise NotThereError(f"{folder} holds a {type(model).__name__}, which makes no one vector of an image")
    return Encoder(model, processor)


def _loaded(auto_class: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """A model in evaluation mode, on the GPU where there is one, and the processor of its images.

    Args:
        auto_class: of transformers.
        folder: of the model.
        options: of load_whole.
    """
    from transformers import AutoImageProcessor

    try:
        model = load_whole(auto_class, folder, dtype=torch.float32, trust_remote_code=False, **options)
    except ValueError as error:
        raise NotThereError(str(error)) from None
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), processor


def load_models(benchmark: Benchmark) -> tuple[dict[str, Any], dict[str, str]]:
    """What the measures of a benchmark need: models by measure, and of those that are not there why."""
    models: dict[str, Any] = {}
    absent: dict[str, str] = {}
    load = cache(lambda loader, *facts: loader(*facts))  # measures share what they have in common
    for entry in benchmark.measured:
        if entry.model is None:
            continue
        try:
            measure, folder = MEASURES[entry.name], find_model(entry.model)
            models[entry.name] = load(measure.load_loader(), folder, *([entry.label] if measure.has_label else []))
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

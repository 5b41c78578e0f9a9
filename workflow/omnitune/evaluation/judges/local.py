"""A judge that runs in this process: a model of transformers that takes images and texts.

Its parts are loaded with the processors that work with Pillow, as torchvision is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.config.benchmarks.judge import Judge, Sampling
from omnitune.errors import reason_of
from omnitune.evaluation.judges.prompt import SYSTEM, Answer, MissingError, Part, read_answer
from omnitune.evaluation.model_files import find_model, judge_key
from omnitune.models.files import load_whole
from omnitune.models.text.chat_template import render_chat


@dataclass(frozen=True)
class LocalJudge:
    """A model with what prepares its inputs.

    Attributes:
        model: of transformers; it generates.
        processor: of texts with images.
        sampling: how it generates.
    """

    model: Any
    processor: Any
    sampling: Sampling

    @torch.inference_mode()
    def answer(self, parts: Sequence[Part], seed: int) -> Answer | MissingError:
        """The scores that the model gives, or why there are none; the same for a seed, on one machine."""
        try:
            inputs = self._inputs(parts)
        except ValueError as error:  # of the instruction or its images, such as a text that names image tokens
            return MissingError(f"the question cannot be put ({reason_of(error)})")
        torch.manual_seed(seed)
        how = {"temperature": self.sampling.temperature, "top_p": self.sampling.top_p, "do_sample": True}
        how = how if self.sampling.temperature else {"do_sample": False}
        made = self.model.generate(**inputs, max_new_tokens=self.sampling.max_tokens, **how)
        tokens = made[0, inputs["input_ids"].shape[1] :].tolist()
        if len(tokens) == self.sampling.max_tokens and tokens[-1] not in self._ends:
            return MissingError("the answer was cut off (max_tokens)")
        found = read_answer(self.processor.tokenizer.decode(tokens, skip_special_tokens=True))
        return found or MissingError("the answer holds no scores")

    def _inputs(self, parts: Sequence[Part]) -> Any:
        """What the model reads, on its device."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
        chat = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": content},
        ]
        tokenizer = self.processor.tokenizer
        text = render_chat(template_of(self.processor), chat, generation=True, **tokenizer.special_tokens_map)
        begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        images = [part for part in parts if isinstance(part, Image.Image)]
        inputs = self.processor(text=[text], images=images, add_special_tokens=not begins, return_tensors="pt")
        return inputs.to(self.model.device, dtype=self.model.dtype)

    @property
    def _ends(self) -> list[int]:
        """Tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]


def load_judge(judge: Judge) -> LocalJudge:
    """The model of a judge without endpoint, on the GPU where there is one; ValueError where it cannot be had."""
    from transformers import AutoModelForImageTextToText

    folder = find_model(judge.model, key=judge_key(judge))
    model = load_whole(AutoModelForImageTextToText, folder, dtype="auto", trust_remote_code=False).eval()
    processor = _load_processor(folder, model.config)
    if not template_of(processor):
        raise ValueError(f"{judge_key(judge)}: {judge.model!r} has no chat template. Take a model for chats.")
    return LocalJudge(model.to("cuda" if torch.cuda.is_available() else "cpu"), processor, judge.sampling)


def template_of(processor: Any) -> str:
    """Its chat template; "" where there is none."""
    template = processor.chat_template or processor.tokenizer.chat_template or ""
    return template.get("default", "") if isinstance(template, dict) else template  # several have names


def _load_processor(folder: Path, config: Any) -> Any:
    """The processor of a model's kind, without its part for videos, which wants torchvision and is not needed."""
    from transformers import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        raise ValueError(f"{folder}: transformers has no processor of texts and images for {config.model_type!r}.")
    names = [name for name in kind.get_attributes() if name != "video_processor"]
    still: Any = type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: names)})
    try:
        return still.from_pretrained(folder, backend="pil", trust_remote_code=False)
    except Exception as error:  # the library raises anything where files or packages are missing
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise ValueError(
            f"{folder}: its processor cannot be loaded ({reason}). Only those that work with Pillow can, as "
            "torchvision is not there; a model behind an endpoint (base_url) needs none here."
        ) from None

"""The fixed texts of the published model, its tokenizer, and the chat that is made of an instruction.

Nothing here imports torch: counting the tokens of a data set does not wait for it and has no room for it.
"""

from pathlib import Path
from typing import Any

from omnitune.errors import reason_of
from omnitune.io.part_configs import TOKENIZER_FILE, check_tokenizer
from omnitune.io.weights import read_json, require_json

SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
SYSTEM_PROMPT_DROP = "You are a helpful assistant that generates images."

DEFAULT_NEGATIVE_PROMPT = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a pipeline folder, from processor/ (or from mllm/, where it lies there).

    The image processor beside it is left alone: text does not need it, and it would need torchvision.
    """
    processor = Path(folder) / "processor"
    source = processor if (processor / TOKENIZER_FILE).is_file() else Path(folder) / "mllm"
    require_json(source)
    tokenizer = _tokenizer(source)
    template = processor / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():
        tokenizer.chat_template = read_json(template).get("chat_template")
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError(f"{template}: chat_template: is missing or no text.")
    return tokenizer


def _tokenizer(source: Path) -> Any:
    """The tokenizer of a folder: of the published class, whose steps are its own; no code of the folder runs."""
    check_tokenizer(source)
    from transformers import Qwen2Tokenizer

    try:
        return Qwen2Tokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the library raises anything where files are missing or do not fit
        raise ValueError(
            f"{source}: its tokenizer cannot be loaded ({type(error).__name__}: {reason_of(error)[:300]}). "
            "Name a pipeline folder with processor/."
        ) from error


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor, or the tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def apply_chat_template(tokenizer: Any, instruction: str, drop: bool = False) -> str:
    """The chat that the text model reads: system prompt and instruction, no generation prompt.

    Args:
        tokenizer: with a chat template (or a processor that has one).
        instruction: the user's turn.
        drop: the prompt is dropped (classifier-free training): an empty instruction under its own system prompt.

    Raises:
        ValueError: when the tokenizer has no chat template, or one that takes or makes too much.
    """
    tokenizer = tokenizer_of(tokenizer)
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer has no chat template: the processor folder needs chat_template.jinja, chat_template.json "
            "or a chat_template in tokenizer_config.json"
        )
    messages = [
        {"role": "system", "content": SYSTEM_PROMPT_DROP if drop else SYSTEM_PROMPT},
        {"role": "user", "content": "" if drop else instruction},
    ]
    from omnitune.models.chat_template import render_chat

    template = tokenizer.chat_template
    template = template.get("default", "") if isinstance(template, dict) else template  # several have names
    return render_chat(template, messages, **tokenizer.special_tokens_map)


def count_tokens(tokenizer: Any, instruction: str, use_chat_template: bool = True) -> int:
    """Tokens of an instruction as training sees it when nothing is dropped: the whole chat, or the bare instruction."""
    tokenizer = tokenizer_of(tokenizer)
    text = apply_chat_template(tokenizer, instruction) if use_chat_template else instruction
    return len(tokenizer(text, verbose=False).input_ids)

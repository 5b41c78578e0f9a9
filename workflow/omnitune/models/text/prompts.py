"""The fixed texts of the published model, its tokenizer, and the chat that is made of an instruction.

Nothing here imports torch: counting the tokens of a data set does not wait for it and has no room for it.
"""

from pathlib import Path
from typing import Any

from omnitune.errors import reason_of
from omnitune.io.json_object import FETCH, read_json
from omnitune.io.model_files.tokenizer import SPECIAL, read_tokenizer, tokenizer_folder
from omnitune.io.model_files.weights import require_json

SYSTEM_PROMPT = "You are a helpful assistant that generates high-quality images based on user instructions."
SYSTEM_PROMPT_DROP = "You are a helpful assistant that generates images."

DEFAULT_NEGATIVE_PROMPT = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a pipeline folder.

    The image processor beside it is left alone: text does not need it, and it would need torchvision.
    """
    source = tokenizer_folder(Path(folder))
    require_json(source)
    tokenizer = _tokenizer(source)
    template = Path(folder) / "processor/chat_template.json"
    if not tokenizer.chat_template and template.is_file():
        tokenizer.chat_template = read_json(template).get("chat_template")
        if not isinstance(tokenizer.chat_template, str):
            raise ValueError(f"{template}: chat_template: is missing or no text.")
    return tokenizer


def _tokenizer(source: Path) -> Any:
    """Made of what was read, as no file of a stranger is one for the library's loader; equal to what that makes."""
    files = read_tokenizer(source)
    from transformers import AddedToken, Qwen2Tokenizer

    added = {number: AddedToken(**values) for number, values in files.added.items()}
    known = {str(token): token for token in added.values()}

    def token(value: Any) -> Any:
        return AddedToken(**value) if isinstance(value, dict) else value

    settings = {name: token(value) for name, value in files.settings.items() if name in SPECIAL}
    settings = {name: known.get(str(value), value) for name, value in settings.items()}
    extra = [token(value) for value in files.settings["extra_special_tokens"]]
    settings = {**files.settings, **settings, "extra_special_tokens": extra, "merges": files.merges}
    try:
        tokenizer = Qwen2Tokenizer(vocab=files.vocab, added_tokens_decoder=added, **settings)
    except Exception as error:  # the library raises anything where words and merges do not fit
        raise ValueError(
            f"{source}: its tokenizer cannot be loaded ({type(error).__name__}: {reason_of(error)[:300]}). "
            "Name a pipeline folder with processor/."
        ) from error
    for number, value in added.items():
        if tokenizer.convert_tokens_to_ids(str(value)) != number:
            raise ValueError(f"{source}: its token {str(value)[:80]!r} cannot have the number {number}. {FETCH}")
    return tokenizer


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
        ValueError: when the tokenizer has no chat template, or one that makes nothing, or takes or makes too much.
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
    from omnitune.models.text.chat_template import render_chat

    template = tokenizer.chat_template
    template = template.get("default", "") if isinstance(template, dict) else template  # several have names
    chat = render_chat(template, messages, **tokenizer.special_tokens_map)
    try:
        chat.encode()
    except UnicodeEncodeError:
        raise ValueError("the tokenizer's chat template makes what is no text. Take that of the base model.") from None
    if not chat:
        raise ValueError("the tokenizer's chat template makes no text of an instruction. Take that of the base model.")
    return chat


def count_tokens(tokenizer: Any, instruction: str, use_chat_template: bool = True) -> int:
    """Tokens of an instruction as training sees it when nothing is dropped: the whole chat, or the bare instruction."""
    tokenizer = tokenizer_of(tokenizer)
    text = apply_chat_template(tokenizer, instruction) if use_chat_template else instruction
    return len(tokenizer(text, verbose=False).input_ids)

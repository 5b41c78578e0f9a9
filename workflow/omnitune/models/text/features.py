"""Instructions to text features, with the language model inside Qwen2.5-VL (text only)."""

from collections.abc import Sequence
from typing import Any

import torch

from omnitune.models.text.prompts import apply_chat_template, tokenizer_of


def text_model_of(mllm: Any) -> Any:
    """The text model inside Qwen2_5_VLForConditionalGeneration or Qwen2_5_VLModel, without vision tower and head."""
    inner = getattr(mllm, "model", mllm)
    return getattr(inner, "language_model", inner)


@torch.no_grad()
def encode_text(
    mllm: Any,
    tokenizer: Any,
    instructions: Sequence[str],
    drop: Sequence[bool] | bool = False,
    max_length: int = 1024,
    device: torch.device | str | None = None,
    use_chat_template: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of instructions: the text model's last hidden state after its final norm.

    Args:
        mllm: Qwen2_5_VLForConditionalGeneration or Qwen2_5_VLModel.
        tokenizer: its tokenizer, or a processor that holds it.
        instructions: B texts.
        drop: for all or for each, whether the prompt is dropped; see apply_chat_template.
        max_length: longer texts are cut at their end, in tokens.
        device: where the model is; None asks its parameters.
        use_chat_template: False gives the instructions to the model as they are (dropped ones empty).

    Returns:
        features [B, L, D] in the model's dtype and mask [B, L] (int64, 1 at tokens), padded right to the longest.

    Raises:
        ValueError: when instructions are empty or drop has another length; for a text without tokens, or with some
            that the model does not know.
    """
    tokenizer = tokenizer_of(tokenizer)
    drops = [drop] * len(instructions) if isinstance(drop, bool) else list(drop)
    if not instructions or len(drops) != len(instructions):
        raise ValueError(f"{len(instructions)} instructions with {len(drops)} drop flags: give one flag for each")
    pairs = zip(instructions, drops, strict=True)
    if use_chat_template:
        chats = [apply_chat_template(tokenizer, text, flag) for text, flag in pairs]
    else:
        # an empty text has no tokens at all, and the model needs one
        chats = ["" if flag else text for text, flag in pairs]
        chats = [chat or tokenizer.pad_token for chat in chats]
    tokens = tokenizer(
        chats, padding="longest", padding_side="right", truncation=True, max_length=max_length, return_tensors="pt"
    )
    _require_tokens(chats, tokens.attention_mask)
    model = text_model_of(mllm)
    _require_known(tokens.input_ids, model.get_input_embeddings().num_embeddings)
    device = next(model.parameters()).device if device is None else device
    mask = tokens.attention_mask.to(device)
    output = model(input_ids=tokens.input_ids.to(device), attention_mask=mask, use_cache=False)
    return output.last_hidden_state, mask


def _require_tokens(chats: Sequence[str], mask: torch.Tensor) -> None:
    """Raises ValueError for a chat without tokens, by mask [B, L]."""
    empty = (mask.sum(dim=1) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"the tokenizer makes no tokens of {chats[empty[0]][:80]!r}, and the text encoder needs one. Take "
            "processor/ from where mllm/ is from."
        )


def _require_known(tokens: torch.Tensor, known: int) -> None:
    """Raises ValueError for tokens [B, L] beyond those that the embedding has."""
    if int(tokens.max()) >= known:
        raise ValueError(
            f"the tokenizer has words that the text encoder, of {known}, does not know: they are of two models. Take "
            "processor/ and mllm/ from one."
        )


def unpadded(features: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Features [L, D] of each text, of features [B, L, D] and their mask [B, L]."""
    return [row[:length] for row, length in zip(features, mask.sum(dim=1).long().tolist(), strict=True)]

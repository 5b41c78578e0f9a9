"""The demo's tokenizer and text encoder: the published classes, a few hundred words, a few hundred thousand parameters.

The encoder is random and stays so, as the published one stays frozen, but it knows which words matter: all others have
the embedding zero. What remains of them is what their neighbours add, so that an untrained transformer, which attends
to all tokens alike, finds the colour that was asked for instead of the articles and the chat's markup.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from omnitune.demo.dataset import COUNTS, draw_drafts
from omnitune.demo.scenes import BACKGROUND_COLOURS, PATTERNS, PLACES, SHAPE_COLOURS, SHAPES
from omnitune.models.text.prompts import SYSTEM_PROMPT, SYSTEM_PROMPT_DROP

# What stands before each instruction. A token each: it says the same everywhere, and would be half of the sequence
# otherwise.
CHAT_HEADS = tuple(
    f"<|im_start|>system\n{prompt}<|im_end|>\n<|im_start|>user\n" for prompt in (SYSTEM_PROMPT, SYSTEM_PROMPT_DROP)
)
TASK_WORDS = ("make", "move", "place", "give", "paint", "colour", "background", "1", "2")
TELLING_WORDS = {*SHAPE_COLOURS, *BACKGROUND_COLOURS, *SHAPES, *PLACES, *PATTERNS, *TASK_WORDS}
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HELDOUT_TEXTS = (
    60  # held-out instructions of each task that words are learned from: the shipped transformer reads these words
)
VOCABULARY = 800  # upper limit; every word of the demo is one token before that
HIDDEN_SIZE = 128
MIXING = 0.7  # standard deviation of the layers' weights, in units of 1 / sqrt(inputs)
CONTEXT = (
    3.0  # the same for what a layer's attention adds: a plain mean over some twenty tokens, hence the large factor
)
MAXIMUM_TOKENS = 1024


def demo_texts(seed: int = 0) -> list[str]:
    """What the tokenizer learns its words from: the system prompts, the roles, and the instructions of every task."""
    texts = ["system\n", "user\n", "assistant\n", SYSTEM_PROMPT, SYSTEM_PROMPT_DROP] * 20
    for task in COUNTS:
        training, heldout = draw_drafts(task, seed, HELDOUT_TEXTS)
        texts += [draft.instruction for draft in (*training, *heldout)]
    return texts


def build_tokenizer(seed: int = 0) -> Qwen2Tokenizer:
    """Byte-level BPE with the Qwen2 splitting, special tokens and chat turns; pads right."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(demo_texts(seed), trainer)
    tokenizer = Qwen2Tokenizer(
        vocab=learner.get_vocab(),
        merges=_merges(learner),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        padding_side="right",
        model_max_length=MAXIMUM_TOKENS,
    )
    tokenizer.add_tokens([AddedToken(head, special=False, normalized=False) for head in CHAT_HEADS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _merges(learner: Tokenizer) -> Any:
    """The learnt merges, which the library gives only inside its JSON form."""
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def text_encoder_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Two text layers and a vision tower of one, which nothing calls but the published class has."""

    def token(name: str) -> Any:
        return tokenizer.convert_tokens_to_ids(name)

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAXIMUM_TOKENS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": True,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": HIDDEN_SIZE,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def build_text_encoder(tokenizer: Qwen2Tokenizer, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """The random encoder, float32; its last hidden states are [batch, tokens, HIDDEN_SIZE] of unit mean square.

    Each weight is a function of its name, and a word's embedding one of the word: the shipped transformer has learned
    to read them, and still does where the vocabulary grows.
    """
    model = Qwen2_5_VLForConditionalGeneration(text_encoder_config(tokenizer)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = _generator(seed, name)
            if "embed_tokens" in name:
                parameter.zero_()
                for token in range(len(tokenizer)):
                    word = str(tokenizer.decode([token])).strip()
                    if word in TELLING_WORDS:
                        parameter[token].normal_(0.0, 1.0, generator=_generator(seed, word))
            elif "q_proj" in name and parameter.ndim > 1:
                parameter.zero_()
            elif name.startswith("model.language_model") and "o_proj" in name:
                parameter.normal_(0.0, CONTEXT * parameter.shape[1] ** -0.5, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, MIXING * parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def save_text_encoder(folder: Path, seed: int = 0) -> None:
    """Write `processor/` (tokenizer and chat template) and `mllm/` below the folder."""
    tokenizer = build_tokenizer(seed)
    tokenizer.save_pretrained(folder / "processor")
    build_text_encoder(tokenizer, seed).save_pretrained(folder / "mllm")

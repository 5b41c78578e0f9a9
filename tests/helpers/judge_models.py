"""Tiny models that take images and texts, made on disk: one whose answer follows from the image, and random ones."""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import AddedToken

from omnitune.demo.text_encoder import build_text_encoder, build_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGE, END = "<|image_pad|>", "<|im_end|>"
HIDDEN = 16
ONE, ANSWERED, RED = range(3)  # channels: of all tokens but answers, of answers, and what images add


def build_random(folder: Path) -> Path:
    """A Qwen2.5-VL, whose processor has a part for videos as well."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    build_text_encoder(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 4).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def build_knowing(folder: Path, red: str, blue: str) -> Path:
    """A LLaVA that answers one text where the images are rather red, and another where they are rather blue.

    One layer adds to each token the mean over all before it; of texts, that says nothing of RED.
    """
    torch.manual_seed(3)
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (red, blue)])
    number = tokenizer.convert_tokens_to_ids
    text = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=number(END),
    )
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **sizes)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=number(IMAGE))
    model = transformers.LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = number(END)
    square = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(**square),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )
    _teach(model, processor, number(red), number(blue), number(END))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _teach(model: Any, processor: Any, red: int, blue: int, end: int) -> None:
    """Sets the weights by which it answers as `build_knowing` says."""
    images = [Image.new("RGB", (28, 28), colour) for colour in ("red", "blue")]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].mean(1)
    direction, middle = features[0] - features[1], features.mean(0)
    projector, language = model.model.multi_modal_projector, model.model.language_model
    for parameter in (*projector.parameters(), *language.layers[0].parameters(), model.lm_head.weight):
        parameter.zero_()
    projector.linear_1.weight[0], projector.linear_1.weight[1] = direction, -direction
    projector.linear_1.weight.mul_(100)
    projector.linear_1.bias[:2] = -(projector.linear_1.weight[:2] @ middle)
    projector.linear_2.weight[RED, :2] = torch.tensor([1.0, -1.0])
    layer = language.layers[0]
    layer.input_layernorm.weight.fill_(1)
    layer.self_attn.v_proj.weight[0, RED], layer.self_attn.o_proj.weight[RED, 0] = 1, 1
    tokens = language.embed_tokens.weight
    tokens.zero_()
    tokens[:, ONE] = 1
    tokens[[red, blue]] = 0
    tokens[[red, blue], ANSWERED] = 100
    model.lm_head.weight[[red, blue], ONE] = 1
    model.lm_head.weight[red, RED], model.lm_head.weight[blue, RED] = 1, -1
    model.lm_head.weight[end, ANSWERED] = 1
    model.lm_head.weight.mul_(10)  # so that all else is unlikely at any usual temperature

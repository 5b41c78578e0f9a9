"""The pipeline: folder layout, text features, images, guidance, and batches of unlike samples."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.models import CHAT_TEMPLATE, tiny_mllm, tiny_pipeline, tiny_tokenizer, tiny_vae
from omnitune.images.resize import target_size, to_pil, to_rgb, to_tensor
from omnitune.models import (
    SYSTEM_PROMPT,
    SYSTEM_PROMPT_DROP,
    OmniGen2DPMSolverScheduler,
    OmniGen2FlowMatchScheduler,
    OmniGen2Pipeline,
    apply_chat_template,
    encode_text,
)

pytestmark = pytest.mark.unit

FIGURES = json.loads((Path(__file__).parents[1] / "data/reference/figures.json").read_text())
STEPS = 3


@pytest.fixture(scope="module")
def pipeline() -> OmniGen2Pipeline:
    return tiny_pipeline()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- images


def test_published_sizes() -> None:
    for width, height, max_pixels, max_side, *expected in FIGURES["resize"]:
        assert list(target_size(width, height, max_pixels, max_side)) == expected


def test_size_of_nothing() -> None:
    with pytest.raises(ValueError, match="15 x 40 pixels becomes 0 x 32"):
        target_size(15, 40, 10**6, 1000)


def test_every_mode_becomes_rgb() -> None:
    base = picture(8, 6)
    for mode in ("RGB", "RGBA", "L", "LA", "1", "P", "CMYK", "YCbCr"):
        converted = to_rgb(base.convert(mode))
        assert (converted.mode, converted.size) == ("RGB", (8, 6))
    transparent = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert to_rgb(transparent).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 0)
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((2, 2), 65535, dtype=np.uint16))
    assert deep.mode == "I;16" and to_rgb(deep).getpixel((0, 0)) == (255, 255, 255)


def test_orientation_is_applied() -> None:
    image = picture(8, 4)
    image.getexif()[0x0112] = 6
    assert to_rgb(image).size == (4, 8)


def test_tensors_and_back() -> None:
    image = picture(8, 6)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 6, 8) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(np.asarray(to_pil(tensor)), np.asarray(image))


# ---------------------------------------------------------------------- text


def test_chat() -> None:
    assert apply_chat_template(tiny_tokenizer(), "Draw a cat.") == (
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\nDraw a cat.<|im_end|>\n"
    )
    assert apply_chat_template(tiny_tokenizer(), "Draw a cat.", drop=True) == (
        f"<|im_start|>system\n{SYSTEM_PROMPT_DROP}<|im_end|>\n<|im_start|>user\n<|im_end|>\n"
    )


def test_features_are_the_last_hidden_state_whatever_the_padding() -> None:
    mllm, tokenizer = tiny_mllm(), tiny_tokenizer()
    texts = ["a", "A much longer instruction"]
    features, mask = encode_text(mllm, tokenizer, texts, drop=[False, False])
    assert mask.sum(dim=1).tolist()[0] < features.shape[1] == mask.sum(dim=1).tolist()[1]
    for i, text in enumerate(texts):
        tokens = tokenizer(apply_chat_template(tokenizer, text), return_tensors="pt")
        with torch.no_grad():
            whole = mllm(**tokens, output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(features[i, : len(whole)], whole, atol=1e-5)
    inner, _ = encode_text(mllm.model, tokenizer, texts)
    assert torch.equal(inner, features)


def test_features_options() -> None:
    mllm, tokenizer = tiny_mllm(), tiny_tokenizer()
    assert encode_text(mllm, tokenizer, ["a long instruction"], max_length=12)[0].shape[1] == 12
    plain, mask = encode_text(mllm, tokenizer, ["ab", "ab"], drop=[False, True], use_chat_template=False)
    assert plain.shape[1] == 2 and mask.sum(dim=1).tolist() == [2, 1]
    with pytest.raises(ValueError, match="2 instructions with 1 drop flags"):
        encode_text(mllm, tokenizer, ["a", "b"], drop=[True])


# ---------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def folder(pipeline: OmniGen2Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path


@pytest.mark.slow
def test_published_layout_loads_without_its_code(folder: Path, pipeline: OmniGen2Pipeline) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "model_index.json",
        "transformer",
        "vae",
        "mllm",
        "processor",
        "scheduler",
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index["transformer"] == ["omnigen2.models.transformers.transformer_omnigen2", "OmniGen2Transformer2DModel"]
    # code in the folder, as the published repository has it, must never run
    for name in ("transformer/transformer_omnigen2.py", "scheduler/scheduling_flow_match_euler_discrete.py"):
        (folder / name).write_text("raise RuntimeError('remote code ran')\n")
    (folder / "processor" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"})
    )
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "dynamic_time_shift": True})
    )
    loaded = OmniGen2Pipeline.from_pretrained(folder)
    assert type(loaded.scheduler) is OmniGen2FlowMatchScheduler
    assert loaded.processor.chat_template == CHAT_TEMPLATE
    assert "torchvision" not in sys.modules
    options: dict[str, Any] = {"latents": [noise(8, 8)], "height": 16, "width": 16, "num_inference_steps": STEPS}
    options["output_type"] = "latent"
    assert torch.equal(loaded("a cat", **options).images, pipeline("a cat", **options).images)


def test_components_dtype_and_older_template(folder: Path, tmp_path: Path) -> None:
    solver = OmniGen2DPMSolverScheduler()
    loaded = OmniGen2Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, scheduler=solver, vae=tiny_vae())
    assert loaded.scheduler is solver and loaded.vae.dtype == torch.float32
    assert loaded.transformer.dtype == next(loaded.mllm.parameters()).dtype == torch.bfloat16
    loaded.processor.chat_template = None
    loaded.save_pretrained(tmp_path)
    (tmp_path / "processor" / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    again = OmniGen2Pipeline.from_pretrained(tmp_path)
    assert again.processor.chat_template == CHAT_TEMPLATE
    assert type(again.scheduler) is OmniGen2DPMSolverScheduler


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no transformer"):
        OmniGen2Pipeline.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'unet'"):
        OmniGen2Pipeline.from_pretrained(folder, unet=None)


# ---------------------------------------------------------------------- calls


@pytest.mark.slow
def test_list_equals_one_by_one(pipeline: OmniGen2Pipeline) -> None:
    prompts = ["a cat", "make the sky of the photo red", "join both", "a dog"]
    images = [[], [picture(20, 12)], [picture(16, 16, 1), picture(9, 30, 2)], None]
    sizes = [(16, 24), (16, 16), (8, 12), (16, 16)]
    noises = [noise(8, 12), noise(6, 10, 1), noise(4, 6, 2), noise(8, 8, 3)]
    options: dict[str, Any] = {"num_inference_steps": STEPS, "image_guidance_scale": 2.0, "output_type": "latent"}
    together = pipeline(
        prompts,
        input_images=images,
        height=[height for height, _ in sizes],
        width=[width for _, width in sizes],
        latents=noises,
        generator=[seeded(i) for i in range(4)],
        **options,
    ).images
    for i, prompt in enumerate(prompts):
        alone = pipeline(
            prompt,
            input_images=images[i],
            height=sizes[i][0],
            width=sizes[i][1],
            latents=[noises[i]],
            generator=seeded(i),
            **options,
        ).images[0]
        assert torch.allclose(together[i], alone, atol=1e-5), f"sample {i}"


@pytest.mark.slow
@pytest.mark.parametrize(("text_scale", "image_scale"), [(4.0, 2.0), (4.0, 1.0), (1.0, 2.0), (1.0, 1.0)])
def test_guidance_is_the_published_formula(pipeline: OmniGen2Pipeline, text_scale: float, image_scale: float) -> None:
    image, start, cfg_range = picture(16, 12), noise(6, 8), (0.3, 0.7)
    ours = pipeline(
        "make it red",
        "ugly",
        [image],
        num_inference_steps=4,
        text_guidance_scale=text_scale,
        image_guidance_scale=image_scale,
        cfg_range=cfg_range,
        latents=[start],
        generator=seeded(5),
        output_type="latent",
    ).images[0]

    reference = pipeline.encode_image(image, [seeded(5)])
    positive, negative = pipeline.encode_prompt(["make it red", "ugly"])

    def predict(text: torch.Tensor, references: list[torch.Tensor] | None) -> torch.Tensor:
        with torch.no_grad():
            return pipeline.transformer([x], torch.tensor([t]), text[None], None, [references]).sample[0]

    x = start
    m = (6 * 8) ** 0.5 / 40
    times = [k / 4 / (m - m * k / 4 + k / 4) for k in range(4)] + [1.0]
    for k, t in enumerate(times[:-1]):
        v = predict(positive, reference)
        if k == 2 and text_scale > 1:  # 1/4 and 3/4 lie outside the range
            none, with_reference = predict(negative, None), predict(negative, reference)
            if image_scale > 1:
                v = none + image_scale * (with_reference - none) + text_scale * (v - with_reference)
            else:
                v = none + text_scale * (v - none)
        x = x + (times[k + 1] - t) * v
    assert torch.allclose(ours, x, atol=1e-5)


@pytest.mark.slow
def test_one_transformer_call_per_step(pipeline: OmniGen2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    forward = pipeline.transformer.forward

    def counted(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(len(hidden_states))
        return forward(hidden_states, *args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "forward", counted)
    options: dict[str, Any] = {"height": 16, "width": 16, "num_inference_steps": STEPS, "output_type": "latent"}
    images = [[picture(8, 8)], []]
    pipeline(["a", "b"], input_images=images, image_guidance_scale=2.0, **options)
    pipeline("a", text_guidance_scale=1.0, **options)
    assert batches == [5] * STEPS + [1] * STEPS


@pytest.mark.slow
def test_sizes(pipeline: OmniGen2Pipeline) -> None:
    options: dict[str, Any] = {"num_inference_steps": 1}
    one = [picture(22, 13)]
    assert pipeline("a", input_images=one, height=32, width=32, **options).images[0].size == (20, 12)
    assert pipeline("a", input_images=one, height=32, width=40, align_res=False, **options).images[0].size == (40, 32)
    assert pipeline("a", input_images=one * 2, height=32, width=40, **options).images[0].size == (40, 32)
    # under max_pixels while it is made, then back to the asked size
    limited: dict[str, Any] = {"height": 32, "width": 40, "max_pixels": 16 * 20}
    assert pipeline("a", **limited, **options).images[0].size == (40, 32)
    latent = pipeline("a", **limited, output_type="latent", **options).images
    assert latent.shape == (1, 4, 8, 10)
    # a limit of inputs is none of the result, but where that takes the input's size
    inputs: dict[str, Any] = {"height": 32, "width": 40, "max_input_image_pixels": 8 * 8, "output_type": "latent"}
    assert pipeline("a", **inputs, **options).images.shape == (1, 4, 16, 20)
    assert pipeline("a", input_images=[picture(16, 16)], **inputs, **options).images.shape == (1, 4, 4, 4)


@pytest.mark.slow
def test_output_types_and_seeds(pipeline: OmniGen2Pipeline) -> None:
    options: dict[str, Any] = {"height": 8, "width": 12, "num_inference_steps": 1, "num_images_per_prompt": 2}
    generators = [seeded(i) for i in range(4)]
    images = pipeline(["a", "b"], generator=generators, output_type="pt", **options).images
    assert images.shape == (4, 3, 8, 12) and 0 <= images.min() <= images.max() <= 1
    array = pipeline(["a", "b"], generator=[seeded(i) for i in range(4)], output_type="np", **options).images
    assert array.shape == (4, 8, 12, 3)
    assert np.array_equal(array, images.permute(0, 2, 3, 1).numpy())
    (pil,) = pipeline("a", generator=seeded(0), return_dict=False, **{**options, "num_images_per_prompt": 1})
    assert np.abs(np.asarray(pil[0]) / 255 - array[0]).max() < 0.51 / 255 + 1e-4


@pytest.mark.slow
def test_prompt_embeddings_and_callback(pipeline: OmniGen2Pipeline) -> None:
    options: dict[str, Any] = {"height": 8, "width": 8, "num_inference_steps": STEPS, "latents": [noise(4, 4)]}
    options["output_type"] = "latent"
    expected = pipeline("a cat", "ugly", **options).images
    (positive, negative), seen = pipeline.encode_prompt(["a cat", "ugly"]), []

    def note(pipe: OmniGen2Pipeline, step: int, times: list[float], values: dict[str, Any]) -> None:
        seen.append((step, times[0], values["latents"][0].shape))

    embeds = {"prompt_embeds": positive[None], "negative_prompt_embeds": negative[None]}
    assert torch.allclose(pipeline(**embeds, callback_on_step_end=note, **options).images, expected, atol=1e-6)
    assert [step for step, *_ in seen] == list(range(STEPS)) and seen[0][1:] == (0.0, (4, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of prompt and prompt_embeds"),
        ({"prompt": []}, "non-empty list"),
        ({"prompt": "a", "output_type": "jpg"}, "output_type = 'jpg'"),
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt = 0"),
        ({"prompt": "a", "height": 3}, "at least 4 pixels"),
        ({"prompt": ["a", "b"], "height": [8]}, "height has 1 entries, but 2"),
        ({"prompt": ["a", "b"], "input_images": [[]]}, "1 entries for 2 prompts"),
        ({"prompt": "a", "input_images": [picture(8, 8)] * 6}, "6 input_images: the model takes at most 5"),
        ({"prompt": "a", "input_images": ["cat.png"]}, "holds a str: give PIL images"),
        ({"prompt": "a", "latents": [torch.zeros(4, 2, 2)]}, "latents have the shapes"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps = 0"),
    ],
)
def test_errors(pipeline: OmniGen2Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**{"height": 8, "width": 8, **arguments})

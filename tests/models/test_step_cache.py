"""Caches over the steps of a sampling: each branch of each image has its own state, and what is left out is said."""

from typing import Any

import pytest
import torch
from PIL import Image

from helpers.models import tiny_pipeline
from omnitune.evaluation.placement import place
from omnitune.models import OmniGen2Pipeline

pytestmark = [pytest.mark.unit, pytest.mark.slow]

STEPS = 7
PROMPTS = ["a cat", "make the sky of the photo red"]
IMAGES = [[], [Image.new("RGB", (20, 12), "red")]]
SIZES = [(8, 12), (6, 10)]  # of latents


def sampled(pipeline: OmniGen2Pipeline, chosen: list[int], **options: Any) -> list[torch.Tensor]:
    def noise(number: int) -> torch.Tensor:
        return torch.randn(4, *SIZES[number], generator=torch.Generator().manual_seed(number))

    options = {"image_guidance_scale": 2.0, "cfg_range": (0.0, 0.8), "num_inference_steps": STEPS, **options}
    images: list[torch.Tensor] = list(
        pipeline(
            [PROMPTS[number] for number in chosen],
            "ugly",
            [IMAGES[number] for number in chosen],
            height=[2 * SIZES[number][0] for number in chosen],
            width=[2 * SIZES[number][1] for number in chosen],
            latents=[noise(number) for number in chosen],
            generator=[torch.Generator().manual_seed(number) for number in chosen],
            output_type="latent",
            **options,
        ).images
    )
    return images


def enable(pipeline: OmniGen2Pipeline, name: str) -> None:
    pipeline.enable_teacache(0.5) if name == "teacache" else pipeline.enable_taylorseer()


@pytest.mark.parametrize("name", ["teacache", "taylorseer"])
def test_an_image_does_not_depend_on_others_nor_on_earlier_calls(name: str) -> None:
    pipeline = tiny_pipeline()
    exact = sampled(pipeline, [0, 1])
    enable(pipeline, name)
    together = sampled(pipeline, [0, 1])
    [alone] = sampled(pipeline, [1])
    assert torch.allclose(together[1], alone, atol=1e-5)
    assert not torch.allclose(together[1], exact[1], atol=1e-5), "nothing was left out"
    pipeline.disable_step_cache()
    assert all(torch.equal(found, wanted) for found, wanted in zip(sampled(pipeline, [0, 1]), exact, strict=True))


def test_teacache_keeps_what_each_branch_has_added() -> None:
    """With a threshold that nothing reaches, all steps but the first and the last add what the first has added."""
    pipeline = tiny_pipeline()
    pipeline.enable_teacache(1e9)
    layers, calls = pipeline.transformer._run, []

    def run(blocks: Any, x: torch.Tensor, packing: Any, temb: torch.Tensor) -> torch.Tensor:
        output = layers(blocks, x, packing, temb)
        if blocks is pipeline.transformer.layers:
            calls.append(packing.lengths)
        return output

    pipeline.transformer._run = run
    sampled(pipeline, [1], cfg_range=(0.0, 1.0))
    assert [len(lengths) for lengths in calls] == [3, 3]
    calls.clear()
    pipeline.enable_teacache(0.0)
    sampled(pipeline, [1], cfg_range=(0.0, 1.0))
    assert 2 < len(calls) <= STEPS
    with pytest.raises(ValueError, match=r"rel_l1_thresh = -1 must not be below 0"):
        pipeline.enable_teacache(-1)


def test_taylorseer_computes_five_steps_and_then_each_third() -> None:
    pipeline = tiny_pipeline()
    calls = []
    for block in pipeline.transformer.layers:
        block.attn.to_q.register_forward_hook(lambda *_: calls.append(1))
    pipeline.enable_taylorseer()
    sampled(pipeline, [0], cfg_range=(0.0, 1.0), num_inference_steps=12)
    assert len(calls) == len(pipeline.transformer.layers) * (5 + 2)  # the seventh and the tenth


@pytest.mark.parametrize("offload", ["model", "group"])
def test_models_that_come_and_go_draw_the_same(offload: Any) -> None:
    """On the CPU, with the hooks that move models on a GPU."""
    pipeline = tiny_pipeline()
    exact = sampled(pipeline, [0, 1])
    place(pipeline, offload, torch.device("cpu"))
    for found, wanted in zip(sampled(pipeline, [0, 1]), exact, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)

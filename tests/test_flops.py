"""Operations of the transformer, against what torch counts while it computes."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.tiny import TRANSFORMER
from omnitune.flops import ModelFlops, SampleTokens, peak_flops
from omnitune.models import OmniGen2Transformer2DModel, lora_config

pytestmark = pytest.mark.unit

ONE = [SampleTokens(6, (16, 4), 64)]
TWO = [SampleTokens(40, (), 1024), SampleTokens(9, (256,), 256)]


def scores(query: tuple[int, ...], key: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Operations of attention on the CPU, which torch's counter does not know: two products of query and key."""
    return 4 * math.prod(query) * key[-2]


def scores_backward(_: Any, query: tuple[int, ...], key: tuple[int, ...], *__: Any, **___: Any) -> int:
    return 2 * scores(query, key)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: scores,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: scores_backward,
}


def inputs(samples: list[SampleTokens]) -> dict[str, Any]:
    def latent(tokens: int) -> torch.Tensor:
        side = 2 * int(tokens**0.5)
        return torch.randn(4, side, side)

    longest = max(sample.text for sample in samples)
    return {
        "hidden_states": [latent(sample.image) for sample in samples],
        "timestep": torch.rand(len(samples)),
        "encoder_hidden_states": torch.randn(len(samples), longest, 32),
        "encoder_attention_mask": torch.tensor([[k < s.text for k in range(longest)] for s in samples]),
        "ref_image_hidden_states": [[latent(tokens) for tokens in sample.references] for sample in samples],
    }


def counted(model: OmniGen2Transformer2DModel, samples: list[SampleTokens], backward: bool) -> int:
    """What torch counts."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        prediction = model(**inputs(samples), return_dict=False)[0]
        if backward:
            torch.stack([part.square().sum() for part in prediction]).sum().backward()
    return counter.get_total_flops()


def adapted(**changes: Any) -> OmniGen2Transformer2DModel:
    model = OmniGen2Transformer2DModel(**TRANSFORMER).requires_grad_(False)
    model.add_adapter(lora_config(4, **changes))
    return model.train()


@pytest.mark.slow
def test_a_sample_is_counted_exactly() -> None:
    model = OmniGen2Transformer2DModel(**TRANSFORMER).train()
    index = (
        2 * 5 * sum(ONE[0].references) * TRANSFORMER["hidden_size"]
    )  # the references' index is looked up by a product
    assert ModelFlops(model).forward(ONE) == counted(model, ONE, backward=False) - index
    assert ModelFlops(model).training(ONE) == counted(model, ONE, backward=True) - 2 * index


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_batch_agrees_with_torch(lora: bool) -> None:
    model = adapted() if lora else OmniGen2Transformer2DModel(**TRANSFORMER).train()
    flops = ModelFlops(model)
    assert flops.forward(TWO) == pytest.approx(counted(model, TWO, backward=False), rel=1e-3)
    # Gradients of the modulations are summed over a sample's tokens by a product that is no part of the model.
    assert flops.training(TWO) == pytest.approx(counted(model, TWO, backward=True), rel=0.03)


@pytest.mark.slow
def test_only_what_gradients_pass_through_is_counted() -> None:
    late = adapted(target_modules=["layers.1.attn.to_q"])
    early = adapted(target_modules=["context_refiner.0.attn.to_q"])
    forward, training = ModelFlops(late).forward(TWO), ModelFlops(late).training(TWO)
    assert forward < training < 2 * forward < ModelFlops(early).training(TWO)
    assert training == pytest.approx(counted(late, TWO, backward=True), rel=0.04)


def test_size_of_the_published_model() -> None:
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel()
    flops, sample = ModelFlops(model), SampleTokens(200, (), 4096)
    parameters = sum(p.numel() for p in model.layers.parameters())
    assert flops.training([sample]) == pytest.approx(3 * flops.forward([sample]), rel=1e-3)
    assert flops.forward([sample]) > 1.9 * parameters * sample.total * 0.9
    assert flops.forward([sample] * 3) == 3 * flops.forward([sample])


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA A10", torch.bfloat16, 125e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, 165e12),
        ("NVIDIA A10G", torch.bfloat16, None),
        ("NVIDIA GeForce RTX 4090 D", torch.bfloat16, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", torch.bfloat16, None),
        ("NVIDIA H100 PCIe", torch.float64, None),
        ("some CPU", torch.bfloat16, None),
    ],
)
def test_peaks(name: str, dtype: torch.dtype, expected: float | None) -> None:
    assert peak_flops(name, dtype) == expected

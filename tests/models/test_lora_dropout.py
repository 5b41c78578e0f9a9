"""Dropout of adapters: what is dropped belongs to the sample, and nothing else has a part in it."""

from typing import Any

import pytest
import torch

from helpers.models import tiny_transformer
from omnitune.models import OmniGen2Transformer2DModel, lora_config
from omnitune.models.lora.dropout import DropoutSeeds, SampleDropout, use_sample_dropout

pytestmark = pytest.mark.unit

SEEDS = torch.tensor([11, -(2**62), 0])
SAMPLES = [(8, 6, [4, 4]), (4, 3, []), (6, 9, [4])]  # sides of latent, text tokens, sides of references


def adapted(
    p: float = 0.3, use_dora: bool = False, targets: tuple[str, ...] = ("attn.to_q", "feed_forward.linear_2")
) -> tuple[OmniGen2Transformer2DModel, DropoutSeeds]:
    model = tiny_transformer()
    model.requires_grad_(False)
    model.add_adapter(lora_config(4, dropout=p, target_modules=targets, use_dora=use_dora))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                parameter.normal_(0.0, 0.5, generator=generator)
    return model.train(), use_sample_dropout(model, p)


def batch(numbers: list[int]) -> dict[str, Any]:
    """Samples by number; each has its own content."""
    latents, texts, references = [], [], []
    for number in numbers:
        side, length, sides = SAMPLES[number]
        generator = torch.Generator().manual_seed(number)
        latents.append(torch.randn(4, side, side, generator=generator))
        texts.append(torch.randn(length, 32, generator=generator))
        references.append([torch.randn(4, s, s, generator=generator) for s in sides])
    lengths = torch.tensor([len(text) for text in texts])
    return {
        "hidden_states": latents,
        "timestep": torch.linspace(0.2, 0.8, 3)[numbers],
        "encoder_hidden_states": torch.nn.utils.rnn.pad_sequence(texts, batch_first=True),
        "encoder_attention_mask": torch.arange(int(lengths.max()))[None] < lengths[:, None],
        "ref_image_hidden_states": references,
    }


def outputs(model: OmniGen2Transformer2DModel, seeds: DropoutSeeds, numbers: list[int]) -> list[torch.Tensor]:
    seeds.set(SEEDS[numbers])
    return model(**batch(numbers)).sample


def dropout(p: float, name: str = "layers.0.attn.to_q", seed: int = 1, tokens: int = 400) -> SampleDropout:
    """Of one sample of many tokens."""
    seeds = DropoutSeeds()
    seeds.set(torch.tensor([seed]))
    packing = type("Layout", (), {"samples": torch.zeros(tokens, dtype=torch.int64)})()
    seeds.enter(torch.nn.Identity().train(), (None, packing))
    return SampleDropout(p, name, seeds).train()


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_sample_drops_the_same_packed_or_alone(use_dora: bool) -> None:
    model, seeds = adapted(use_dora=use_dora)
    with torch.no_grad():
        alone = [outputs(model, seeds, [number])[0] for number in range(3)]
        for numbers in ([0, 1, 2], [2, 0]):
            for number, output in zip(numbers, outputs(model, seeds, numbers), strict=True):
                assert torch.allclose(output, alone[number], atol=1e-5)
        seeds.set(SEEDS + 1)
        other = model(**batch([0, 1, 2])).sample
        model.eval()
        still = model(**batch([0])).sample[0]
    assert all((output - before).abs().max() > 1e-3 for output, before in zip(other, alone, strict=True))
    assert (still - alone[0]).abs().max() > 1e-3


def test_evaluation_drops_nothing_and_needs_no_seeds() -> None:
    model, _ = adapted()
    model.eval()
    plain, _ = adapted(p=0.9)
    assert torch.equal(model(**batch([0, 2])).sample[1], plain.eval()(**batch([0, 2])).sample[1])


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_rate_and_scale(p: float) -> None:
    layer = dropout(p)
    result = layer(torch.ones(400, 300))
    assert result.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    deviation = (p * (1 - p) / result.numel()) ** 0.5
    assert abs((result == 0).float().mean() - p) < 5 * deviation
    assert abs(result.mean() - 1) < 5 * deviation / (1 - p)
    for axis in (0, 1):  # no row and no column is special
        share = (result == 0).float().mean(axis)
        assert (share - p).abs().max() < 6 * (p * (1 - p) / result.shape[axis]) ** 0.5


def test_seeds_modules_and_places_differ_independently() -> None:
    masks = [dropout(0.5).dropped(64), dropout(0.5, seed=2).dropped(64), dropout(0.5, "layers.1.attn.to_q").dropped(64)]
    masks += [masks[0].roll(1, 0), masks[0].roll(1, 1)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one == other).float().mean() - 0.5) < 0.02
    assert torch.equal(dropout(0.5).dropped(64), masks[0])


@pytest.mark.slow
def test_gradients_of_recomputed_blocks_are_the_same() -> None:
    gradients = []
    for checkpointing in (False, True):
        model, seeds = adapted()
        if checkpointing:
            model.enable_gradient_checkpointing()
        sum(output.square().sum() for output in outputs(model, seeds, [0, 1, 2])).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) == 5 * 2 * 2
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.slow
def test_compiled_blocks_drop_the_same() -> None:
    model, seeds = adapted()
    compiled, others = adapted()
    for block in compiled.layers:
        block.compile(backend="eager")
    with torch.no_grad():
        expected = outputs(model, seeds, [0, 1, 2])
        found = outputs(compiled, others, [0, 1, 2])
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_layers_without_tokens_are_refused() -> None:
    for target in ("norm1.linear", "x_embedder", "norm_out.linear_2"):
        with pytest.raises(ValueError, match=r"train.lora_dropout: 0.3 cannot be applied to .*lora_target_modules"):
            adapted(targets=("attn.to_q", target))


def test_seeds_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="must be int64"):
        DropoutSeeds().set(torch.rand(3))

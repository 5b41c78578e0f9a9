"""Padded sequences give what the transformer's own forward gives."""

import pytest
import torch
from torch import Tensor

from omnitune.demo.base_data import PATCHES, patches
from omnitune.demo.base_model import TRANSFORMER_CONFIG, build_transformer
from omnitune.demo.padded import PaddedBatch, padded_forward

pytestmark = pytest.mark.unit

SIZES = (((), (8, 8)), (((6, 8),), (6, 8)), (((6, 10), (8, 6)), (8, 8)))  # of references and of the output, in latents
LENGTHS = (3, 7, 5)


def padded(latents: list[Tensor], references: list[list[Tensor]], text: Tensor, times: Tensor) -> PaddedBatch:
    tables = torch.zeros(len(latents), 2, PATCHES, 16)
    grids = torch.zeros(len(latents), 3, 2, dtype=torch.int64)
    for row, (latent, refs) in enumerate(zip(latents, references, strict=True)):
        for column, image in [*enumerate(refs), (2, latent)]:
            grids[row, column] = torch.tensor(image.shape[-2:]) // 2
            if column < 2:
                tables[row, column] = patches(image[None])[0]
    noisy = torch.cat([patches(latent[None]) for latent in latents])
    return PaddedBatch(noisy, times, text, torch.tensor(LENGTHS), tables, grids)


def test_padding_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    model = build_transformer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    latents = [torch.randn(4, *size, generator=generator) for _, size in SIZES]
    references = [[torch.randn(4, *size, generator=generator) for size in sizes] for sizes, _ in SIZES]
    text = torch.randn(3, max(LENGTHS), TRANSFORMER_CONFIG["text_feat_dim"], generator=generator)
    times = torch.tensor([0.1, 0.5, 0.9])
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        expected = model(latents, times, text, mask, references).sample
        found = padded_forward(model, padded(latents, references, text, times))
    for own, other in zip(expected, found, strict=True):
        wanted = patches(own[None])[0]
        count = own[0].numel() // 4
        assert wanted[:count].norm() > 1
        torch.testing.assert_close(other[:count], wanted[:count], rtol=1e-4, atol=1e-4)

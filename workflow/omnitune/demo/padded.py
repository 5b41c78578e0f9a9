"""The transformer over padded sequences of fixed lengths: the same function as its own forward, in few large kernels.

Its own forward packs samples of any sizes without padding, which costs time on the host for each of them. With
thousands of samples of 80 tokens that time is all there is, so the base model's training takes this way. Latents are
patches here, [tokens, patch_size * patch_size * channels], in the order of the transformer's own patches.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.transformer.rope import THETA
from omnitune.models.transformer.transformer_omnigen2 import MAX_REFERENCE_IMAGES


@dataclass
class PaddedBatch:
    """B samples with up to R references of up to N patches.

    Attributes:
        noisy: [B, N, P] patches of the noisy latents.
        times: [B], 1 is data.
        text: [B, L, text_feat_dim] features, lengths: [B] how many of them count, at least one.
        references: [B, R, N, P] patches.
        grids: int64 [B, R + 1, 2] rows and columns of each reference and, last, of the noisy latent; 0 where there is
            none.
    """

    noisy: Tensor
    times: Tensor
    text: Tensor
    lengths: Tensor
    references: Tensor
    grids: Tensor

    def image_mask(self) -> Tensor:
        """[B, R + 1, N], true at patches that are there."""
        return torch.arange(self.noisy.shape[1], device=self.noisy.device) < self.grids.prod(-1)[..., None]


def _angles(batch: PaddedBatch, axes_dim: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Rotary angles of text [B, L, head_dim / 2] and of images [B, R + 1, N, head_dim / 2]."""
    device = batch.noisy.device
    sides = batch.grids.amax(-1)
    starts = batch.lengths[:, None] + sides.cumsum(1) - sides
    numbers, columns = torch.arange(batch.noisy.shape[1], device=device), batch.grids[..., 1:].clamp(min=1)
    image = torch.stack([starts[..., None].expand(-1, -1, len(numbers)), numbers // columns, numbers % columns], -1)
    text = torch.arange(batch.text.shape[1], device=device)[:, None].expand(-1, 3)
    angles = []
    for ids in (text.expand(len(batch.text), -1, -1), image):
        parts = []
        for axis, dim in enumerate(axes_dim):
            frequencies = THETA ** -(torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
            parts.append(ids[..., axis, None] * frequencies)
        angles.append(torch.cat(parts, -1))
    return angles[0], angles[1]


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, heads, L, head_dim], angles [B, L, head_dim / 2]."""
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), -1).flatten(-2).to(x.dtype)


def _attend(attn: Any, x: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
    heads = [layer(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for layer in (attn.to_q, attn.to_k, attn.to_v)]
    query, key = _rotate(attn.norm_q(heads[0]), angles), _rotate(attn.norm_k(heads[1]), angles)
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, 1) if groups > 1 else part for part in (key, heads[2]))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
    return attn.to_out[0](attended.transpose(1, 2).flatten(-2))


def _block(block: Any, x: Tensor, mask: Tensor, angles: Tensor, temb: Tensor | None) -> Tensor:
    if temb is None:
        x = x + block.norm2(_attend(block.attn, block.norm1(x), mask, angles))
        return x + block.ffn_norm2(block.feed_forward(block.ffn_norm1(x)))
    factors = block.norm1.linear(F.silu(temb))[:, None].chunk(4, -1)
    scale_msa, gate_msa, scale_mlp, gate_mlp = factors
    normed = block.norm1.norm(x) * (1 + scale_msa)
    x = x + gate_msa.tanh() * block.norm2(_attend(block.attn, normed, mask, angles))
    return x + gate_mlp.tanh() * block.ffn_norm2(block.feed_forward(block.ffn_norm1(x) * (1 + scale_mlp)))


def padded_forward(model: OmniGen2Transformer2DModel, batch: PaddedBatch) -> Tensor:
    """Velocity [B, N, P]; what stands at patches that are not there has no meaning."""
    count = batch.references.shape[1]
    text_mask = torch.arange(batch.text.shape[1], device=batch.text.device) < batch.lengths[:, None]
    image_mask = batch.image_mask()
    text_angles, image_angles = _angles(batch, tuple(model.config.axes_dim_rope))
    temb, text = model.time_caption_embed(batch.times, batch.text)

    for block in model.context_refiner:
        text = _block(block, text, text_mask, text_angles, None)
    image = model.x_embedder(batch.noisy)
    for block in model.noise_refiner:
        image = _block(block, image, image_mask[:, -1], image_angles[:, -1], temb)
    numbers = F.one_hot(torch.arange(count, device=text.device), MAX_REFERENCE_IMAGES).to(text.dtype)
    reference = model.ref_image_patch_embedder(batch.references)
    reference = (reference + (numbers @ model.image_index_embedding).to(reference.dtype)[:, None]).flatten(0, 1)
    reference_mask = image_mask[:, :-1].flatten(0, 1)
    # attention needs a key; where there is no reference at all, the joint layers leave out what comes of it
    reference_mask = reference_mask | ~reference_mask.any(-1, keepdim=True)
    for block in model.ref_image_refiner:
        times = temb.repeat_interleave(count, 0)
        reference = _block(block, reference, reference_mask, image_angles[:, :-1].flatten(0, 1), times)

    joint = torch.cat([text, reference.unflatten(0, (-1, count)).flatten(1, 2), image], 1)
    mask = torch.cat([text_mask, image_mask.flatten(1)], 1)
    angles = torch.cat([text_angles, image_angles.flatten(1, 2)], 1)
    for block in model.layers:
        joint = _block(block, joint, mask, angles, temb)
    scale = 1 + model.norm_out.linear_1(F.silu(temb))[:, None]
    last = joint[:, -batch.noisy.shape[1] :]
    return model.norm_out.linear_2(model.norm_out.norm(last).to(last.dtype) * scale)

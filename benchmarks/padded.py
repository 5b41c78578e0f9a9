"""What packing is measured against: the same weights over batches that are padded to their longest sequence."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.transformer.packing import Packing
from omnitune.models.transformer.rope import apply_rotary
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Attention, OmniGen2TransformerBlock

Sample = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]  # latent, text features, reference latents


def padded(packed: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """[tokens, ...] to [sequences, longest, ...], filled with zeros."""
    return pad_sequence(list(packed.split(lengths)), batch_first=True)


class Layout:
    """A stage's rotary angles [sequences, longest, 1, head_dim / 2, 2] and its key mask [sequences, 1, 1, longest]."""

    def __init__(self, packing: Packing) -> None:
        self.rotation = padded(packing.rotation, packing.lengths)
        self.mask = (torch.arange(max(packing.lengths)) < torch.tensor(packing.lengths)[:, None])[:, None, None]


def attend(attn: OmniGen2Attention, x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Attention of [sequences, longest, hidden_size] with padding masked away."""
    query, key, value = (layer(x).unflatten(-1, (-1, attn.head_dim)) for layer in (attn.to_q, attn.to_k, attn.to_v))
    query = apply_rotary(attn.norm_q(query), layout.rotation)
    key = apply_rotary(attn.norm_k(key), layout.rotation)
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, enable_gqa=True)
    return attn.to_out[0](attended.transpose(1, 2).flatten(-2))


def run_block(
    block: OmniGen2TransformerBlock, x: torch.Tensor, layout: Layout, temb: torch.Tensor | None
) -> torch.Tensor:
    """One layer; `temb` is [sequences, time_dim], or None without modulation."""
    if temb is None:
        x = x + block.norm2(attend(block.attn, block.norm1(x), layout))
        return x + block.ffn_norm2(block.feed_forward(block.ffn_norm1(x)))
    modulation = block.norm1.linear(F.silu(temb))[:, None].chunk(4, dim=-1)
    scale_msa, gate_msa, scale_mlp, gate_mlp = modulation
    normed = block.norm1.norm(x) * (1 + scale_msa)
    x = x + gate_msa.tanh() * block.norm2(attend(block.attn, normed, layout))
    return x + gate_mlp.tanh() * block.ffn_norm2(block.feed_forward(block.ffn_norm1(x) * (1 + scale_mlp)))


def run(blocks: nn.ModuleList, x: torch.Tensor, layout: Layout, temb: torch.Tensor | None) -> torch.Tensor:
    """All layers of a stage."""
    for block in blocks:
        x = run_block(block, x, layout, temb)
    return x


def padded_forward(
    model: OmniGen2Transformer2DModel, samples: list[Sample], timestep: torch.Tensor
) -> list[torch.Tensor]:
    """The model's prediction for each sample, every stage padded to its longest sequence."""
    latents, texts, references = (list(part) for part in zip(*samples, strict=True))
    lengths = [len(text) for text in texts]
    packings = model._packings(latents, references, lengths)
    layouts = {name: Layout(packing) for name, packing in packings.items()}
    temb, text = model.time_caption_embed(timestep, pad_sequence(texts, batch_first=True))
    text = run(model.context_refiner, text, layouts["text"], None)
    image = padded(model.x_embedder(model._patchify(latents)), packings["image"].lengths)
    image = run(model.noise_refiner, image, layouts["image"], temb)

    parts = [[tokens[:length]] for tokens, length in zip(text, lengths, strict=True)]
    if "reference" in packings:
        owners = [sample for sample, refs in enumerate(references) for _ in refs]
        tokens = model._embed_references(references)
        tokens = padded(tokens, packings["reference"].lengths)
        tokens = run(model.ref_image_refiner, tokens, layouts["reference"], temb[owners])
        for owner, sequence, length in zip(owners, tokens, packings["reference"].lengths, strict=True):
            parts[owner].append(sequence[:length])
    image_lengths = packings["image"].lengths
    for part, sequence, length in zip(parts, image, image_lengths, strict=True):
        part.append(sequence[:length])

    joint = pad_sequence([torch.cat(part) for part in parts], batch_first=True)
    joint = run(model.layers, joint, layouts["joint"], temb)
    ends = [
        sequence[length - count : length]
        for sequence, length, count in zip(joint, packings["joint"].lengths, image_lengths, strict=True)
    ]
    output = model.norm_out(torch.cat(ends), temb, packings["image"]).split(image_lengths)
    return [model._unpatchify(tokens, latent) for tokens, latent in zip(output, latents, strict=True)]

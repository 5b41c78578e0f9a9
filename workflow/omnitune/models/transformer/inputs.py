"""What the transformer takes: sizes that fit each other, and inputs that fit the sizes."""

from collections.abc import Sequence
from typing import Any

import torch

MAX_REFERENCE_IMAGES = 5


def check_inputs(
    config: Any,
    latents: Sequence[torch.Tensor],
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor | None,
    references: Sequence[Sequence[torch.Tensor]],
) -> list[int]:
    """The number of text tokens of each sample; raises ValueError for inputs that do not fit the model's config.

    Args:
        config: of the model: patch_size, in_channels, text_feat_dim.
        latents: [C, H, W] each.
        encoder_hidden_states, encoder_attention_mask: [B, L, text_feat_dim] and [B, L], as `forward` takes them.
        references: for each sample its latents [C, h, w].
    """
    batch = len(latents)
    for name, count in (
        ("encoder_hidden_states", len(encoder_hidden_states)),
        ("ref_image_hidden_states", len(references)),
    ):
        if count != batch or batch == 0:
            raise ValueError(
                f"{name} has {count} samples, hidden_states has {batch}: give the same number, at least one"
            )
    if encoder_hidden_states.ndim != 3 or encoder_hidden_states.shape[-1] != config.text_feat_dim:
        raise ValueError(
            f"encoder_hidden_states has shape {tuple(encoder_hidden_states.shape)}: "
            f"it must be [batch, length, text_feat_dim = {config.text_feat_dim}]"
        )
    for i, refs in enumerate(references):
        if len(refs) > MAX_REFERENCE_IMAGES:
            raise ValueError(
                f"ref_image_hidden_states[{i}] has {len(refs)} images: the model takes at most {MAX_REFERENCE_IMAGES}"
            )
    for i, latent in enumerate(latents):
        _check_latent(config, f"hidden_states[{i}]", latent)
    for i, refs in enumerate(references):
        for j, latent in enumerate(refs):
            _check_latent(config, f"ref_image_hidden_states[{i}][{j}]", latent)
    return _text_lengths(encoder_hidden_states, encoder_attention_mask)


def _check_latent(config: Any, name: str, latent: torch.Tensor) -> None:
    p, channels = config.patch_size, config.in_channels
    shape = tuple(latent.shape)
    if len(shape) != 3 or shape[0] != channels:
        raise ValueError(f"{name} has shape {shape}: a latent must be [in_channels = {channels}, height, width]")
    if min(shape[1:]) < p or shape[1] % p or shape[2] % p:
        raise ValueError(f"{name} has shape {shape}: height and width must be multiples of patch_size = {p}")


def _text_lengths(encoder_hidden_states: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """Text tokens of each sample; ValueError unless the mask is right-padded and leaves a token to everyone."""
    if mask is None:
        return [encoder_hidden_states.shape[1]] * len(encoder_hidden_states)
    if mask.shape != encoder_hidden_states.shape[:2]:
        raise ValueError(
            f"encoder_attention_mask has shape {tuple(mask.shape)}: "
            f"it must be {tuple(encoder_hidden_states.shape[:2])}, like encoder_hidden_states"
        )
    valid = mask.cpu().bool()
    lengths = valid.sum(dim=1).tolist()
    for sample, length in enumerate(lengths):
        if length == 0 or not valid[sample, :length].all():
            raise ValueError(
                f"encoder_attention_mask[{sample}] has {length} text tokens: "
                "each sample needs at least one, and all of them before the padding"
            )
    return lengths


def check_sizes(
    hidden_size: int,
    num_attention_heads: int,
    num_kv_heads: int,
    axes_dim_rope: Sequence[int],
    axes_lens: Sequence[int],
) -> None:
    """Raises ValueError for sizes of a model that do not fit each other."""
    if hidden_size != num_attention_heads * sum(axes_dim_rope):
        raise ValueError(
            f"hidden_size = {hidden_size} must be num_attention_heads * sum(axes_dim_rope) = "
            f"{num_attention_heads} * {sum(axes_dim_rope)}: change one of the three"
        )
    if num_attention_heads % num_kv_heads:
        raise ValueError(
            f"num_attention_heads = {num_attention_heads} must be a multiple of num_kv_heads = {num_kv_heads}"
        )
    if len(axes_dim_rope) != 3 or len(axes_lens) != 3 or any(dim % 2 for dim in axes_dim_rope):
        raise ValueError(
            f"axes_dim_rope = {tuple(axes_dim_rope)} and axes_lens = {tuple(axes_lens)}: "
            "each needs three entries, those of axes_dim_rope even"
        )

"""The OmniGen2 diffusion transformer (arXiv 2506.18871), in diffusers style.

Parameters have the published names and shapes, so that published weights load as they are. Inside, a batch is one
packed tensor [tokens, channels] without any padding: linear layers, norms and feed-forwards run over all tokens at
once, and attention stays within each sequence. Nothing is computed on padding, and a sample's result does not depend on
its neighbours.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.utils import apply_lora_scale
from torch import nn

from omnitune.models.transformer.attention import attend, fastest
from omnitune.models.transformer.inputs import MAX_REFERENCE_IMAGES, check_inputs, check_sizes
from omnitune.models.transformer.packing import Packing, scaled_by_rows
from omnitune.models.transformer.rope import (
    GridSize,
    apply_rotary,
    check_position_ids,
    image_position_ids,
    sample_position_ids,
)
from omnitune.models.transformer.step_cache import TeaCache

TIME_CHANNELS = 256
QK_NORM_EPS = 1e-5
# Forms of a block: with modulation or without, one sample or more, training or not, first or later.
RECOMPILE_LIMIT = 32


class OmniGen2RMSNorm(nn.RMSNorm):
    """RMS norm that computes in float32 and returns the dtype of its input, whatever the dtype of its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class OmniGen2ModulatedNorm(nn.Module):
    """RMS norm scaled by the time embedding; also yields the block's other factors, a row [hidden_size] per sample.

    forward: ([tokens, hidden_size], [samples, time_dim], Packing) -> (normed states, gate_msa, scale_mlp, gate_mlp).
    """

    def __init__(self, hidden_size: int, time_dim: int, eps: float) -> None:
        super().__init__()
        self.linear = nn.Linear(time_dim, 4 * hidden_size)
        self.norm = OmniGen2RMSNorm(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor, temb: torch.Tensor, packing: Packing) -> tuple[torch.Tensor, ...]:
        scale_msa, gate_msa, scale_mlp, gate_mlp = self.linear(F.silu(temb)).chunk(4, dim=-1)
        normed = scaled_by_rows(self.norm(x), 1 + scale_msa, packing.samples)
        return normed, gate_msa.tanh(), 1 + scale_mlp, gate_mlp.tanh()


class OmniGen2Attention(nn.Module):
    """Grouped-query self-attention within each sequence of a packed tensor [tokens, hidden_size]."""

    def __init__(self, hidden_size: int, num_attention_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_dim = hidden_size // num_attention_heads
        self.norm_q = OmniGen2RMSNorm(self.head_dim, eps=QK_NORM_EPS)
        self.norm_k = OmniGen2RMSNorm(self.head_dim, eps=QK_NORM_EPS)
        self.to_q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_k = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.to_v = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(hidden_size, hidden_size, bias=False)])

    def forward(self, x: torch.Tensor, packing: Packing) -> torch.Tensor:
        query, key, value = (layer(x).unflatten(-1, (-1, self.head_dim)) for layer in (self.to_q, self.to_k, self.to_v))
        query = apply_rotary(self.norm_q(query), packing.rotation)
        key = apply_rotary(self.norm_k(key), packing.rotation)
        return self.to_out[0](attend(query, key, value, packing).flatten(-2))


class OmniGen2FeedForward(nn.Module):
    """SwiGLU: linear_2(SiLU(linear_1 x) * linear_3 x), without biases; inner size 4 * hidden_size, rounded up."""

    def __init__(self, hidden_size: int, multiple_of: int, ffn_dim_multiplier: float | None) -> None:
        super().__init__()
        inner = int(4 * hidden_size * (1.0 if ffn_dim_multiplier is None else ffn_dim_multiplier))
        inner = -(-inner // multiple_of) * multiple_of
        self.linear_1 = nn.Linear(hidden_size, inner, bias=False)
        self.linear_2 = nn.Linear(inner, hidden_size, bias=False)
        self.linear_3 = nn.Linear(hidden_size, inner, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)) * self.linear_3(x))


class OmniGen2TransformerBlock(nn.Module):
    """One layer on a packed tensor [tokens, hidden_size], with sandwich norms.

    With `modulation`, the time embedding [samples, time_dim] scales the normed inputs and gates the residual branches.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_kv_heads: int,
        multiple_of: int,
        ffn_dim_multiplier: float | None,
        norm_eps: float,
        time_dim: int,
        modulation: bool = True,
    ) -> None:
        super().__init__()
        self.modulation = modulation
        self.attn = OmniGen2Attention(hidden_size, num_attention_heads, num_kv_heads)
        self.feed_forward = OmniGen2FeedForward(hidden_size, multiple_of, ffn_dim_multiplier)
        self.norm1: nn.Module
        if modulation:
            self.norm1 = OmniGen2ModulatedNorm(hidden_size, time_dim, norm_eps)
        else:
            self.norm1 = OmniGen2RMSNorm(hidden_size, eps=norm_eps)
        self.ffn_norm1 = OmniGen2RMSNorm(hidden_size, eps=norm_eps)
        self.norm2 = OmniGen2RMSNorm(hidden_size, eps=norm_eps)
        self.ffn_norm2 = OmniGen2RMSNorm(hidden_size, eps=norm_eps)

    def forward(self, x: torch.Tensor, packing: Packing, temb: torch.Tensor | None = None) -> torch.Tensor:
        if not self.modulation:
            x = x + self.norm2(self.attn(self.norm1(x), packing))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        normed, gate_msa, scale_mlp, gate_mlp = self.norm1(x, temb, packing)
        x = x + scaled_by_rows(self.norm2(self.attn(normed, packing)), gate_msa, packing.samples)
        normed = scaled_by_rows(self.ffn_norm1(x), scale_mlp, packing.samples)
        return x + scaled_by_rows(self.ffn_norm2(self.feed_forward(normed)), gate_mlp, packing.samples)


class OmniGen2TimeTextEmbedding(nn.Module):
    """Embeds the times [samples] and the packed text features [tokens, text_feat_dim]."""

    def __init__(
        self, hidden_size: int, time_dim: int, text_feat_dim: int, norm_eps: float, timestep_scale: float
    ) -> None:
        super().__init__()
        self.time_proj = Timesteps(
            TIME_CHANNELS,
            flip_sin_to_cos=True,
            downscale_freq_shift=0.0,
            scale=timestep_scale,  # type: ignore[arg-type]
        )
        self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, time_dim)
        self.caption_embedder = nn.Sequential(
            OmniGen2RMSNorm(text_feat_dim, eps=norm_eps), nn.Linear(text_feat_dim, hidden_size)
        )

    def forward(self, timestep: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        time_dtype: torch.dtype = self.timestep_embedder.linear_1.weight.dtype
        text_dtype: torch.dtype = self.caption_embedder[0].weight.dtype  # type: ignore[assignment]
        temb = self.timestep_embedder(self.time_proj(timestep.float()).to(time_dtype))
        return temb, self.caption_embedder(text.to(text_dtype))


class OmniGen2OutputNorm(nn.Module):
    """Layer norm scaled by the time embedding, then the projection of each token to the values of its patch."""

    def __init__(self, hidden_size: int, time_dim: int, patch_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(time_dim, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear_2 = nn.Linear(hidden_size, patch_dim)

    def forward(self, x: torch.Tensor, temb: torch.Tensor, packing: Packing) -> torch.Tensor:
        scale = 1 + self.linear_1(F.silu(temb))
        return self.linear_2(scaled_by_rows(self.norm(x).to(x.dtype), scale, packing.samples))


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Predicts the flow velocity of latents under text and reference images.

    Args:
        patch_size: side of a square patch, in latent positions.
        in_channels: channels of a latent.
        out_channels: channels of the prediction; None means in_channels.
        hidden_size: width of a token; hidden_size / num_attention_heads must equal sum(axes_dim_rope).
        num_layers: joint layers over text, references and image.
        num_refiner_layers: layers of each of the three refiners.
        num_attention_heads, num_kv_heads: heads of queries, and of keys and values (a divisor).
        multiple_of: the feed-forward's inner size is rounded up to a multiple of it.
        ffn_dim_multiplier: factor on that inner size; None means 1.
        norm_eps: epsilon of the RMS norms.
        axes_dim_rope: even number of channels per head and position axis.
        axes_lens: number of positions of each axis.
        text_feat_dim: width of the text features.
        timestep_scale: factor on the time before its sinusoidal projection.

    Attributes:
        attention: kernel of all attention layers, by its name in attention.py, or "auto": the fastest one.
        gradient_checkpointing_every: with gradient checkpointing, one of every so many blocks of a stage is recomputed.
        teacache: over the calls of a sampling, which says whose they are; None outside of one.

    Raises:
        ValueError: where sizes do not fit each other.
    """

    config: Any  # a frozen dict that also reads as attributes
    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["OmniGen2TransformerBlock"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2520,
        num_layers: int = 32,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 21,
        num_kv_heads: int = 7,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: tuple[int, int, int] = (40, 40, 40),
        axes_lens: tuple[int, int, int] = (10000, 10000, 10000),
        text_feat_dim: int = 2048,
        timestep_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        check_sizes(hidden_size, num_attention_heads, num_kv_heads, axes_dim_rope, axes_lens)
        self.out_channels = in_channels if out_channels is None else out_channels
        self.attention = "auto"
        self.gradient_checkpointing = False
        self.gradient_checkpointing_every = 1
        self.teacache: TeaCache | None = None
        self.runs_all_modules = False  # also those of references where there are none; see _refine_nothing
        time_dim = min(hidden_size, 1024)
        patch_area = patch_size * patch_size

        self.x_embedder = nn.Linear(patch_area * in_channels, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(patch_area * in_channels, hidden_size)
        self.time_caption_embed = OmniGen2TimeTextEmbedding(
            hidden_size, time_dim, text_feat_dim, norm_eps, timestep_scale
        )

        sizes = (hidden_size, num_attention_heads, num_kv_heads, multiple_of, ffn_dim_multiplier, norm_eps, time_dim)
        block = functools.partial(OmniGen2TransformerBlock, *sizes)
        self.noise_refiner = nn.ModuleList(block() for _ in range(num_refiner_layers))
        self.ref_image_refiner = nn.ModuleList(block() for _ in range(num_refiner_layers))
        self.context_refiner = nn.ModuleList(block(modulation=False) for _ in range(num_refiner_layers))
        self.layers = nn.ModuleList(block() for _ in range(num_layers))
        self.norm_out = OmniGen2OutputNorm(hidden_size, time_dim, patch_area * self.out_channels)
        self.image_index_embedding = nn.Parameter(torch.empty(MAX_REFERENCE_IMAGES, hidden_size))
        self.initialize_weights()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fill every parameter for training from scratch; the model then predicts exactly zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.RMSNorm):
                nn.init.ones_(module.weight)
        zeroed: list[nn.Module] = [self.norm_out.linear_1, self.norm_out.linear_2]
        zeroed += [module.linear for module in self.modules() if isinstance(module, OmniGen2ModulatedNorm)]
        for module in zeroed:
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
        nn.init.normal_(self.image_index_embedding, std=0.02)

    @property
    def heads(self) -> tuple[int, int, int]:
        """Heads of queries, heads of keys and values, channels of a head."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_kv_heads
        return heads, kv_heads, self.config.hidden_size // heads

    def compile_blocks(self) -> None:
        """Compile each block in place, for any number of tokens; parameters' names stay. Before FSDP2's fully_shard."""
        # torch 2.11 knows the limit as a setting only
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        for module in self.modules():
            if isinstance(module, OmniGen2TransformerBlock):
                module.compile(dynamic=True)

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor | list[torch.Tensor],
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        ref_image_hidden_states: Sequence[Sequence[torch.Tensor] | None] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor | list[torch.Tensor]]:
        """Velocity x1 - x0 at time t, for each sample of a batch.

        Args:
            hidden_states: noisy latents [B, C, H, W], or a list of B latents [C, H, W] of any sizes.
            timestep: times [B] or one for all, in [0, 1]; 1 is data. Keep them in float32.
            encoder_hidden_states: text features [B, L, text_feat_dim].
            encoder_attention_mask: [B, L], true (1) at text tokens, which come before the padding; None: no padding.
            ref_image_hidden_states: for every sample None or up to five latents [C, h, w]; None: no sample has any.
            attention_kwargs: `{"scale": s}` scales the LoRA layers by s in this call.
            return_dict: False returns a tuple of one.

        Returns:
            `sample`: a tensor for a tensor, a list for a list, in the dtype of the latents.

        Raises:
            ValueError: naming the argument, its value and what would fit.
        """
        del attention_kwargs  # the decorator has used it
        # 1. Check, and cut everything into samples without padding
        as_list = not isinstance(hidden_states, torch.Tensor)
        latents = list(hidden_states)
        references = [list(refs or ()) for refs in (ref_image_hidden_states or [None] * len(latents))]
        lengths = check_inputs(self.config, latents, encoder_hidden_states, encoder_attention_mask, references)
        timestep = torch.as_tensor(timestep, device=latents[0].device).reshape(-1).expand(len(latents))

        # 2. Embed times, text and patches
        text = torch.cat([states[:length] for states, length in zip(encoder_hidden_states, lengths, strict=True)])
        temb, text = self.time_caption_embed(timestep, text)
        image = self.x_embedder(self._patchify(latents))

        # 3. Positions, and how the tokens of each stage fall into sequences
        stages = self._packings(latents, references, lengths, self._kernel(image))

        # 4. Refine text, image and each reference on its own
        text = self._run(self.context_refiner, text, stages["text"], None)
        image = self._run(self.noise_refiner, image, stages["image"], temb)
        parts = [text.split(lengths)]
        if any(references):
            parts.append(self._refine_references(references, stages["reference"], temb))
        elif self.runs_all_modules:
            image = image + self._refine_nothing(latents[0], temb, stages["image"].kernel)
        parts.append(image.split(stages["image"].lengths))

        # 5. Joint layers over [text | references | image] of each sample, read at the image
        image = self._run_joint(parts, stages, temb)

        # 6. Patches back to latents
        patches = zip(self.norm_out(image, temb, stages["image"]).split(stages["image"].lengths), latents, strict=True)
        velocities = [self._unpatchify(tokens, latent) for tokens, latent in patches]
        sample: Any = velocities if as_list else torch.stack(velocities)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(self, blocks: nn.ModuleList, x: torch.Tensor, packing: Packing, temb: torch.Tensor | None) -> torch.Tensor:
        recompute = torch.is_grad_enabled() and self.gradient_checkpointing
        for index, block in enumerate(blocks):
            if recompute and index % self.gradient_checkpointing_every == 0:
                x = self._gradient_checkpointing_func(block, x, packing, temb)
            else:
                x = block(x, packing, temb)
        return x

    def _run_joint(
        self, parts: Sequence[Sequence[torch.Tensor]], stages: dict[str, Packing], temb: torch.Tensor
    ) -> torch.Tensor:
        """Packed tokens of the images behind the joint layers; parts are each sample's texts, references and images."""
        joint = torch.cat([piece for sample in zip(*parts, strict=True) for piece in sample])
        joint = self._run_layers(joint, stages["joint"], temb)
        sequences = zip(joint.split(stages["joint"].lengths), stages["image"].lengths, strict=True)
        return torch.cat([sequence[-count:] for sequence, count in sequences])

    def _run_layers(self, x: torch.Tensor, packing: Packing, temb: torch.Tensor) -> torch.Tensor:
        if self.teacache is None:
            return self._run(self.layers, x, packing, temb)
        first: Any = self.layers[0]
        modulated = first.norm1(x, temb, packing)[0]
        return self.teacache.run(x, modulated, packing, lambda x, part: self._run(self.layers, x, part, temb))

    def _refine_references(
        self, references: list[list[torch.Tensor]], packing: Packing, temb: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Refined tokens of each sample's references, [0, hidden_size] of a sample without any."""
        x = self._run(self.ref_image_refiner, self._embed_references(references), packing, temb)
        return x.split([sum(map(self._token_count, refs)) for refs in references])

    def _embed_references(self, references: list[list[torch.Tensor]]) -> torch.Tensor:
        """Packed tokens of all references, each with the embedding of its index within its sample."""
        reference_latents = list(itertools.chain.from_iterable(references))
        x = self.ref_image_patch_embedder(self._patchify(reference_latents))
        indices = torch.tensor([index for refs in references for index in range(len(refs))])
        counts = torch.tensor([self._token_count(latent) for latent in reference_latents])
        ids = indices.repeat_interleave(counts).to(x.device)
        # a one-hot product: its backward pass is one too, and sums in a fixed order
        one_hot = F.one_hot(ids, MAX_REFERENCE_IMAGES).to(self.image_index_embedding.dtype)
        return x + (one_hot @ self.image_index_embedding).to(x.dtype)

    def _refine_nothing(self, latent: torch.Tensor, temb: torch.Tensor, kernel: str) -> torch.Tensor:
        """Zero, by way of the modules of references.

        A batch without references would leave them out, while another process runs them: under FSDP each module's
        weights are gathered from all processes, which must therefore run the same ones; so must their gradients exist
        under DDP.
        """
        p = self.config.patch_size
        patch = torch.zeros_like(latent[:, :p, :p])
        packing = Packing([(0, image_position_ids(0, (1, 1)))], self.config.axes_dim_rope, latent.device, kernel)
        x = self._run(self.ref_image_refiner, self._embed_references([[patch]]), packing, temb)
        return 0 * x.sum()

    def _kernel(self, states: torch.Tensor) -> str:
        """The name of the kernel that attends: `auto` goes by the device and the dtype of states."""
        if self.attention != "auto":
            return self.attention
        return fastest(states.device, states.dtype, self.heads)

    def _packings(
        self,
        latents: list[torch.Tensor],
        references: list[list[torch.Tensor]],
        lengths: list[int],
        kernel: str = "per_sample",
    ) -> dict[str, Packing]:
        """The layout of each stage: text, image, reference (where there is any) and joint."""
        sequences: dict[str, list[tuple[int, torch.Tensor]]] = {"text": [], "image": [], "reference": [], "joint": []}
        for sample, (latent, refs, length) in enumerate(zip(latents, references, lengths, strict=True)):
            text, images = sample_position_ids(length, [self._grid(image) for image in (*refs, latent)])
            sequences["text"].append((sample, text))
            sequences["image"].append((sample, images[-1]))
            sequences["reference"] += [(sample, ids) for ids in images[:-1]]
            sequences["joint"].append((sample, torch.cat([text, *images])))
        check_position_ids(torch.cat([ids for _, ids in sequences["joint"]]), self.config.axes_lens)
        device, axes = latents[0].device, self.config.axes_dim_rope
        return {name: Packing(parts, axes, device, kernel) for name, parts in sequences.items() if parts}

    def _grid(self, latent: torch.Tensor) -> GridSize:
        return latent.shape[-2] // self.config.patch_size, latent.shape[-1] // self.config.patch_size

    def _token_count(self, latent: torch.Tensor) -> int:
        rows, columns = self._grid(latent)
        return rows * columns

    def _patchify(self, latents: list[torch.Tensor]) -> torch.Tensor:
        """Latents [C, H, W] to one [tokens, p * p * C]; a patch is ordered (row in it, column in it, channel)."""
        p = self.config.patch_size
        patches = []
        for latent in latents:
            rows, columns = self._grid(latent)
            patch = latent.reshape(-1, rows, p, columns, p).permute(1, 3, 2, 4, 0)
            patches.append(patch.reshape(rows * columns, -1))
        return torch.cat(patches).to(self.x_embedder.weight.dtype)

    def _unpatchify(self, tokens: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Tokens [rows * columns, p * p * C] to [C, H, W], in the size and dtype of `latent`."""
        p = self.config.patch_size
        patch = tokens.reshape(*self._grid(latent), p, p, self.out_channels).permute(4, 0, 2, 1, 3)
        return patch.reshape(self.out_channels, *latent.shape[-2:]).to(latent.dtype)

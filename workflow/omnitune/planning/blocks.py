"""What the blocks of the transformer keep in memory, found by running them on tensors without storage.

A hand-made formula of activations is wrong at the next change of the model. Here each operation of a forward and of a
backward pass is run under FakeTensorMode, which knows shapes and types but holds no data, and the bytes of what is
alive are added up.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from omnitune.flops import SampleTokens
from omnitune.models.transformer.packing import Packing


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make, while they are alive; `ignored` ones count nothing."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._ignored = list(ignored)
        self._known = {tensor.untyped_storage()._cdata for tensor in self._ignored}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class _FusedNorm(torch.autograd.Function):
    """Shapes of the fused RMS norm of GPUs, which keeps its input and a number per token; the CPU keeps more steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None


def _fused_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    assert norm.weight is not None
    return _FusedNorm.apply(x, norm.weight.to(x.dtype))


@dataclass(frozen=True)
class Compute:
    """How blocks compute.

    Attributes:
        dtype: of matrix products.
        weights: dtype of the weights that a block computes with: `dtype`, in which FSDP gathers them, or None for that
            in which they are held, which autocast copies to `dtype` where it is another.
        device: "cuda" or "cpu".
    """

    dtype: torch.dtype
    weights: torch.dtype | None
    device: str

    def autocast(self) -> AbstractContextManager[Any]:
        """As the training loop computes; there are no fake tensors on a GPU that is not there."""
        return torch.autocast("cpu", self.dtype) if self.dtype != torch.float32 else nullcontext()


@dataclass(frozen=True)
class Footprint:
    """Bytes of one block, or of what lies around the blocks.

    Attributes:
        kept: from its forward to its backward pass; its output included, its input not.
        forward_only: more, up to the end of the whole forward pass: copies of weights that autocast keeps for it.
        backward: the most in its backward pass, `kept` and the gradients of its weights included.
    """

    kept: int
    forward_only: int
    backward: int


def packing_of(samples: Sequence[SampleTokens], stage: str, axes_dim_rope: Sequence[int]) -> Packing:
    """The layout of a stage, with positions of zero."""
    sequences = [
        (number, torch.zeros(length, 3, dtype=torch.int64))
        for number, sample in enumerate(samples)
        for length in sample.sequences(stage)
    ]
    return Packing(sequences, axes_dim_rope, torch.device("cpu"))


def _without_storage(packing: Packing) -> tuple[Packing, list[Tensor]]:
    """The same under FakeTensorMode; and its tensors."""
    faked = copy.copy(packing)
    tensors = {name: torch.empty(value.shape, dtype=value.dtype) for name, value in _tensors_of(packing).items()}
    vars(faked).update(tensors)
    return faked, list(tensors.values())


def _tensors_of(packing: Packing) -> dict[str, Tensor]:
    return {name: value for name, value in vars(packing).items() if isinstance(value, Tensor)}


def block_footprint(
    block: Any,
    samples: Sequence[SampleTokens],
    stage: str,
    compute: Compute,
    *,
    axes_dim_rope: Sequence[int],
    into: bool,
    temb: bool,
    recompute: bool,
) -> Footprint:
    """Bytes of one block.

    Args:
        block: of a model on the meta device, with `requires_grad` as in training.
        samples: the microbatch.
        stage: which of its tokens pass through the block.
        compute: how it computes.
        axes_dim_rope: of the model.
        into, temb: whether what enters it, and the time embedding, have gradients.
        recompute: whether the block is under gradient checkpointing.
    """
    hidden = block.ffn_norm1.weight.numel()
    layout = packing_of(samples, stage, axes_dim_rope)
    with _fake(block, compute) as (faked, parameters):
        packing, tensors = _without_storage(layout)
        x = torch.empty(sum(packing.lengths), hidden, dtype=compute.dtype, requires_grad=into)
        time: Tensor | None = None
        if block.modulation:
            width = faked.norm1.linear.in_features
            time = torch.empty(len(samples), width, dtype=compute.dtype, requires_grad=temb)

        def forward() -> Tensor:
            if recompute:
                return checkpoint(faked, x, packing, time, use_reentrant=False, preserve_rng_state=False)
            return faked(x, packing, time)

        return _measure(forward, compute, [*parameters, *tensors, x, *([] if time is None else [time])])


def ends_footprint(model: Any, samples: Sequence[SampleTokens], compute: Compute) -> Footprint:
    """Bytes of all that is no block: embeddings, positions, the joint sequence, the output and its error.

    The model's own forward cannot be run for this: how many tokens a sequence has and where it lies is data of tensors
    there, which fake ones do not hold. So this calls the model's parts in the order of
    `OmniGen2Transformer2DModel.forward`, its steps 2 and 5; a test compares it with what that keeps.
    """
    stages = [stage for stage in ("text", "image", "joint", "reference") if any(map(sum, _sequences(samples, stage)))]
    layouts = [packing_of(samples, stage, model.config.axes_dim_rope) for stage in stages]
    positions = sum(tensor.nbytes for layout in layouts for tensor in _tensors_of(layout).values())
    with _fake(model, compute) as (faked, parameters):
        packing, tensors = _without_storage(layouts[1])
        held: list[Tensor] = []

        def forward() -> Tensor:
            image = faked.x_embedder(_patches(faked, samples, "image"))
            reference = faked.ref_image_patch_embedder(_patches(faked, samples, "reference"))
            text = torch.empty(sum(sample.text for sample in samples), model.config.text_feat_dim)
            times, text = faked.time_caption_embed(torch.empty(len(samples)), text)
            joint = torch.cat([text, reference, image])
            held.append(joint)
            output = faked.norm_out(torch.cat([joint[-len(image) :]]), times, packing)
            return (output.float() - torch.empty_like(output, dtype=torch.float32)).square().sum()

        found = _measure(forward, compute, [*parameters, *tensors])
    return Footprint(found.kept + positions, found.forward_only, found.backward + positions)


def _sequences(samples: Sequence[SampleTokens], stage: str) -> list[tuple[int, ...]]:
    return [sample.sequences(stage) for sample in samples]


def _patches(model: Any, samples: Sequence[SampleTokens], stage: str) -> Tensor:
    return torch.empty(sum(n for s in samples for n in s.sequences(stage)), model.x_embedder.in_features)


def _measure(forward: Callable[[], Tensor], compute: Compute, ignored: Sequence[Tensor]) -> Footprint:
    with LiveBytes(ignored) as bytes_:
        with compute.autocast():
            output = forward()
            during = bytes_.live
        kept = bytes_.live
        if not output.requires_grad:
            return Footprint(0, 0, 0)  # nothing trained up to here: the next block needs no more of it than a moment
        # The gradient of a sum takes no memory; the real one of the output takes as much as the output, which then
        # goes.
        size = output.untyped_storage().nbytes()
        total = output.sum()
        del output
        bytes_.peak = bytes_.live
        total.backward()
        return Footprint(kept, during - kept, bytes_.peak + size)


@contextmanager
def _fake(module: Any, compute: Compute) -> Iterator[tuple[Any, list[nn.Parameter]]]:
    """A copy of a module on the meta device whose parameters are fake tensors on the CPU; and these."""
    copied = copy.deepcopy(module)
    with FakeTensorMode():
        parameters: list[nn.Parameter] = []
        for part in copied.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    fake = torch.empty(parameter.shape, dtype=compute.weights or parameter.dtype)
                    parameters.append(nn.Parameter(fake, requires_grad=parameter.requires_grad))
                    part.register_parameter(name, parameters[-1])
            if isinstance(part, nn.RMSNorm) and compute.device != "cpu":
                part.forward = partial(_fused_norm, part)  # type: ignore[method-assign]
        yield copied, parameters

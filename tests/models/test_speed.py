"""What makes the transformer fast changes no result: kernels of attention, compiled and recomputed blocks, float8."""

import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch._dynamo.utils import counters
from torch.nn.attention import varlen
from torchao.float8.float8_linear import Float8Linear

from helpers.models import ragged_batch
from helpers.tiny import TRANSFORMER
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora.lora import TARGET_MODULES
from omnitune.models.transformer import attention
from omnitune.models.transformer.float8 import convert_to_float8
from omnitune.models.transformer.packing import Packing, scaled_by_rows
from omnitune.models.transformer.transformer_omnigen2 import OmniGen2Attention, OmniGen2TransformerBlock

pytestmark = pytest.mark.unit

FLOAT8 = {"hidden_size": 96, "num_attention_heads": 4, "num_kv_heads": 2}  # every side is a multiple of 16


def random_model(**config: Any) -> OmniGen2Transformer2DModel:
    """A tiny model whose modulations and output are random as well: a new one would predict zero."""
    torch.manual_seed(0)
    model = OmniGen2Transformer2DModel(**{**TRANSFORMER, **config})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def with_adapter(model: OmniGen2Transformer2DModel) -> OmniGen2Transformer2DModel:
    from peft import LoraConfig

    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=4, target_modules=list(TARGET_MODULES), init_lora_weights=False))
    return model


def learn(model: OmniGen2Transformer2DModel, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Predictions and gradients."""
    model.zero_grad()
    outputs = model(**batch).sample
    sum(output.square().sum() for output in outputs).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return [*(output.detach() for output in outputs), *gradients]


def some_of(batch: dict[str, Any], samples: slice) -> dict[str, Any]:
    return {key: value[samples] for key, value in batch.items()}


def sequences(lengths: list[int]) -> list[tuple[int, torch.Tensor]]:
    """Sequences of these lengths, one of each sample."""
    return [(sample, torch.zeros(length, 3, dtype=torch.int64)) for sample, length in enumerate(lengths)]


def assert_close(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


def emulated_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts_q: torch.Tensor,
    starts_k: torch.Tensor,
    longest_q: int,
    longest_k: int,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What the kernel computes from its arguments, one sequence at a time."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert longest_q == longest_k == int(starts_q.diff().max()) and type(longest_q) is int
    assert enable_gqa or query.shape[1] == key.shape[1]
    outputs = []
    for (a, b), (c, d) in zip(pairwise(starts_q), pairwise(starts_k), strict=True):
        parts = (query[a:b], key[c:d], value[c:d])
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        outputs.append(F.scaled_dot_product_attention(q, k, v, enable_gqa=enable_gqa)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.slow
def test_kernels_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def emulated(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args)
        return emulated_varlen(*args, **kwargs)

    model = random_model()
    expected = learn(model, ragged_batch())
    monkeypatch.setattr(attention, "varlen_attn", emulated)
    model.attention = "varlen"
    assert_close(learn(model, ragged_batch()), expected)
    assert len(calls) == sum(isinstance(module, OmniGen2Attention) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_the_kernel_is_given_on_a_gpu(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published head size, on the meta device: nothing is computed."""
    seen = []
    real = varlen.varlen_attn
    monkeypatch.setattr(attention, "varlen_attn", lambda *a, **k: seen.append(a) or real(*a, **k))
    packing = Packing(sequences([300, 4096, 17]), (40, 40, 40), torch.device("meta"), "varlen")
    x = torch.empty(4413, 2520, dtype=dtype, device="meta", requires_grad=True)
    output = OmniGen2Attention(2520, 21, 7).to("meta", dtype)(x, packing)
    output.sum().backward()
    assert output.shape == x.shape and x.grad.dtype == dtype
    assert len(seen) == 1
    for query, key, value, starts, *_ in seen:
        assert starts.shape == (4,) and starts.dtype == torch.int32 and starts.device == x.device
        assert query.shape == (4413, 21, 120) and key.shape == value.shape == (4413, 7, 120)
        assert query.dtype == key.dtype == value.dtype == dtype


def test_where_sequences_start() -> None:
    packing = Packing(sequences([5, 2, 2, 9]), (8, 8, 8), torch.device("cpu"))
    assert packing.cu_seqlens.tolist() == [0, 5, 7, 9, 18]
    assert (packing.longest, packing.runs) == (9, [(1, 5), (2, 2), (1, 9)])


@pytest.mark.parametrize("rows", [1, 3])
def test_scaling_by_rows_has_the_derivative_of_indexing(rows: int) -> None:
    ids = torch.tensor([0, 0, 0, 1, 2, 2, 2]).clamp(max=rows - 1)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    table = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(scaled_by_rows(x, table, ids), x * table[ids])
    assert torch.autograd.gradcheck(lambda a, b: scaled_by_rows(a, b, ids), (x, table))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, 5])
def test_recomputing_some_blocks_changes_nothing(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(num_layers=5)
    expected = learn(model, ragged_batch())
    runs = []
    forward = OmniGen2TransformerBlock.forward
    monkeypatch.setattr(OmniGen2TransformerBlock, "forward", lambda self, *a: runs.append(self) or forward(self, *a))
    model.enable_gradient_checkpointing()
    model.gradient_checkpointing_every = every
    assert all(torch.equal(a, b) for a, b in zip(learn(model, ragged_batch()), expected, strict=True))
    assert [runs.count(block) for block in model.layers] == [2 if index % every == 0 else 1 for index in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "adapter"), [("per_sample", True), ("varlen", False)])
def test_compiled_blocks(kernel: str, adapter: bool) -> None:
    """Equal to eager, under recomputation, and other lengths compile nothing anew; in a process of its own.

    Graphs and their backward passes are made as always and then run op by op: code that the CPU's compiler makes of
    them is compared in a whole training (tests/workflow/test_training_features.py).
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = f"import test_speed as t; t.check_compiled({kernel!r}, {adapter})"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent, env=environment, timeout=300)


def check_compiled(kernel: str, adapter: bool) -> None:
    """The body of test_compiled_blocks."""
    emulate_varlen_on_cpu()
    model, eager = (with_adapter(random_model()) if adapter else random_model() for _ in range(2))
    model.attention = eager.attention = kernel
    model.enable_gradient_checkpointing()
    model.gradient_checkpointing_every = 2
    names = list(model.state_dict())
    compile_blocks(model, backend="aot_eager")
    settings = [layer.config for layer in model.modules() if isinstance(layer, Float8Linear)]
    assert all(config.emulate and config.pad_inner_dim for config in settings)
    assert list(model.state_dict()) == names
    for samples in (slice(0, 5), slice(0, 4)):
        assert_close(learn(model, some_of(ragged_batch(), samples)), learn(eager, some_of(ragged_batch(), samples)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for samples in (slice(0, 4), slice(1, 5), slice(2, 5), slice(3, 5)):
            other = some_of(ragged_batch(1), samples)
            assert_close(learn(model, other), learn(eager, other))
    assert bool(counters["graph_break"]) == (kernel == "per_sample")


def compile_blocks(model: OmniGen2Transformer2DModel, backend: str) -> None:
    """`model.compile_blocks()` with another backend."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", partial(torch.compile, backend=backend))
        model.compile_blocks()


def emulate_varlen_on_cpu() -> None:
    """Gives the operator of flash attention and its backward pass to the CPU: torch.compile sees the operator."""

    @varlen._varlen_attn.register_kernel("cpu")
    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, a: Any, b: Any, i: int, j: int, *rest: Any) -> Any:
        output = emulated_varlen(q, k, v, a, b, i, j, enable_gqa=True)
        return output, torch.zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)

    @varlen._varlen_attn_backward.register_kernel("cpu")
    def backward(
        grad: torch.Tensor, q: Any, k: Any, v: Any, out: Any, lse: Any, starts: torch.Tensor, *rest: Any
    ) -> Any:
        gradients: list[list[torch.Tensor]] = [[], [], []]
        for a, b in pairwise(starts.tolist()):
            for kept, found in zip(gradients, attention_gradients(grad[a:b], q[a:b], k[a:b], v[a:b]), strict=True):
                kept.append(found)
        return tuple(torch.cat(kept) for kept in gradients)


def attention_gradients(grad: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Of the query, key and value [tokens, heads, channels] of a sequence, by hand: autograd is off in operators."""
    q, k, v, g = (tensor.transpose(0, 1) for tensor in (*inputs, grad))
    groups, scale = len(q) // len(k), q.shape[-1] ** -0.5
    k, v = (tensor.repeat_interleave(groups, dim=0) for tensor in (k, v))
    weights = (q @ k.mT * scale).softmax(dim=-1)
    of_weights = g @ v.mT
    of_scores = weights * (of_weights - (of_weights * weights).sum(dim=-1, keepdim=True)) * scale
    found = (of_scores @ k, of_scores.mT @ q, weights.mT @ g)
    return [
        tensor.unflatten(0, (len(tensor) // n, n)).sum(dim=1).transpose(0, 1).contiguous()
        for tensor, n in zip(found, (1, groups, groups), strict=True)
    ]


def test_float8_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        published = OmniGen2Transformer2DModel(num_layers=1)
    with pytest.raises(
        ValueError, match=r"hidden_size 2520.*side of 2520.*multiples of 16 on every side.*train.fp8: false"
    ):
        convert_to_float8(published)
    model = random_model(**FLOAT8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compute capability 8\.9 or above; found: none"):
        convert_to_float8(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    with pytest.raises(ValueError, match=r"found: A100 of 8\.0"):
        convert_to_float8(model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match="pip install torchao"):
        convert_to_float8(model)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True])
def test_float8(adapter: bool) -> None:
    """Attention and feed-forward of every block, nothing else; it rounds the operands, here by emulation."""
    plain, model = (with_adapter(m) if adapter else m for m in (random_model(**FLOAT8) for _ in range(2)))
    convert_to_float8(model, emulate=True)
    converted = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    names = {name.removesuffix(".base_layer").split(".", 2)[2] for name in converted}
    layers = {f"feed_forward.linear_{i}" for i in (1, 2, 3)} | {f"attn.{name}" for name in TARGET_MODULES}
    assert names == layers
    assert len(converted) == 7 * sum(isinstance(module, OmniGen2TransformerBlock) for module in model.modules())
    settings = [layer.config for layer in model.modules() if isinstance(layer, Float8Linear)]
    assert all(config.emulate and config.pad_inner_dim for config in settings)
    assert list(model.state_dict()) == list(plain.state_dict())
    expected = learn(plain, ragged_batch())
    ours, theirs = (torch.cat([x.flatten() for x in found]) for found in (learn(model, ragged_batch()), expected))
    assert 0.95 < float(F.cosine_similarity(ours, theirs, dim=0)) < 1 - 1e-6

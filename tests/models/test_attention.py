"""Which kernel of attention is taken where; and, on a GPU, that all of them compute the same."""

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from omnitune.models.transformer import attention
from omnitune.models.transformer.attention import KERNELS, attend, candidates, fastest
from omnitune.models.transformer.packing import Packing

pytestmark = pytest.mark.unit

PUBLISHED = (21, 7, 120)
HOPPER = (9, 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def packing_of(lengths: list[int], device: str, kernel: str) -> Packing:
    ids = [(number, torch.zeros(length, 3, dtype=torch.int64)) for number, length in enumerate(lengths)]
    return Packing(ids, (2, 2, 2), torch.device(device), kernel)


@pytest.fixture
def padded_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch's plain form stand in for cuDNN."""
    monkeypatch.setattr(attention, "PADDED_BACKEND", SDPBackend.MATH)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the compute capability of a GPU that this machine need not have."""
    return lambda capability: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize(
    ("capability", "dtype", "shape", "expected"),
    [
        (HOPPER, torch.bfloat16, PUBLISHED, ["varlen", "cudnn", "per_sample"]),
        (HOPPER, torch.bfloat16, (8, 8, 128), ["varlen", "per_sample"]),  # no channel left to mark padding in
        (HOPPER, torch.bfloat16, (3, 1, 20), ["per_sample"]),  # no multiple of 8
        (HOPPER, torch.float32, PUBLISHED, ["per_sample"]),
        ((8, 0), torch.float16, PUBLISHED, ["varlen", "cudnn", "per_sample"]),
        ((7, 5), torch.float16, PUBLISHED, ["per_sample"]),
    ],
)
def test_candidates_of_a_gpu(gpu: Any, capability: Any, dtype: torch.dtype, shape: Any, expected: list[str]) -> None:
    gpu(capability)
    assert candidates(torch.device("cuda", 0), dtype, shape) == expected
    assert candidates(torch.device("cpu"), dtype, shape) == ["per_sample"]


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """The choice where a device, here the CPU, has the kernels that are given; their times, where these are, too."""

    def choose(kernels: dict[str, Any], seconds: dict[str, float] | None = None) -> str:
        calls = Counter[str]()
        for name, kernel in kernels.items():
            monkeypatch.setitem(KERNELS, name, lambda *a, k=kernel, n=name: calls.update([n]) or k(*a))
        monkeypatch.setattr(attention, "TRIAL_LENGTHS", (10, 13))
        monkeypatch.setattr(attention, "candidates", lambda *_: [*kernels, "per_sample"])
        if seconds:
            monkeypatch.setattr(attention, "_seconds", lambda function, device: seconds[function.args[0]])
        fastest.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.INFO, "omnitune"):
            found = {fastest(torch.device("cpu"), torch.float32, (4, 2, 8)) for _ in range(2)}
        fastest.cache_clear()
        assert set(calls) == set(kernels)
        return found.pop() + "; " + "; ".join(record.message for record in caplog.records)

    return choose


def fails(*_: Any) -> Any:
    raise RuntimeError("no execution plan\nand much more")


def right(*inputs: Any) -> torch.Tensor:
    return attention.attend_per_sample(*inputs)


def wrong(*inputs: Any) -> torch.Tensor:
    return 1.1 * right(*inputs)


def no_number(*inputs: Any) -> torch.Tensor:
    return torch.nan * right(*inputs)


@pytest.mark.parametrize(
    ("varlen", "cudnn", "taken"),
    [(0.02, 0.01, "cudnn"), (0.01, 0.02, "varlen"), (0.011, 0.01, "varlen")],
    ids=["cudnn", "varlen", "nearly the same: the first, in each process and after each restart"],
)
def test_a_trial_decides_once_and_the_log_says_it(trial: Any, varlen: float, cudnn: float, taken: str) -> None:
    said = trial({"varlen": right, "cudnn": right}, {"varlen": varlen, "cudnn": cudnn})
    figures = f"varlen {1000 * varlen:.1f} ms, cudnn {1000 * cudnn:.1f} ms"
    assert said == f"{taken}; attention by {taken}, by a trial of a layer's forward and backward: {figures}"


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (fails, "(no execution plan)"),
        (wrong, "(its result is 0.1 of the norm"),
        (no_number, "(its result is nan of the norm"),
    ],
)
def test_a_kernel_that_fails_or_is_wrong_is_left_out(trial: Any, kernel: Any, reason: str) -> None:
    said = trial({"varlen": right, "cudnn": kernel})
    assert said.startswith(f"varlen; attention: cudnn does not run here and is left out {reason}")
    assert "attention by varlen, by a trial" in said
    said = trial({"varlen": kernel, "cudnn": kernel})
    assert said.startswith("per_sample; ") and said.endswith("; attention by per_sample, as nothing else runs here")


def test_the_padded_kernel_passes_the_trial_where_its_backend_is_there(trial: Any, padded_on_cpu: None) -> None:
    assert trial({"cudnn": KERNELS["cudnn"]}).startswith("cudnn; attention by cudnn")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_padding_gets_no_weight(dtype: torch.dtype) -> None:
    """Also against scores that are as low as such numbers allow: values that padding would add are far from these."""
    packing = packing_of([5], "cpu", "cudnn")
    query, key = (torch.full((5, 2, 120), number, dtype=dtype) for number in (-8.0, 8.0))
    q = attention._padded(query, packing, marks=1.0).transpose(0, 1)
    k = attention._padded(key, packing, marks=0.0, padding=attention.PADDING).transpose(0, 1)
    assert q.shape == k.shape == (2, 128, 128)
    scores = (q.float() @ k.float().transpose(1, 2)) * 120**-0.5
    weights = scores.softmax(dim=-1)[:, :5]
    assert (weights[..., 5:] == 0).all()
    torch.testing.assert_close(weights[..., :5], torch.full((2, 5, 5), 0.2))


def test_lengths_share_plans(monkeypatch: pytest.MonkeyPatch, padded_on_cpu: None) -> None:
    """Whatever the lengths and their order are, cuDNN is asked for few shapes."""
    shapes = set()
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        attention.F, "scaled_dot_product_attention", lambda q, *a, **k: shapes.add(q.shape) or real(q, *a, **k)
    )
    for lengths in ([100, 100, 300], [128, 257], [7, 380, 101, 90]):
        parts = (torch.randn(sum(lengths), heads, 8) for heads in (2, 1, 1))
        attend(*parts, packing_of(lengths, "cpu", "cudnn"))
    assert shapes == {(1, 2, 128, 16), (1, 2, 384, 16)}


def test_grouped_heads_are_not_copied(padded_on_cpu: None) -> None:
    """Keys and values come to the kernel as they are: the gradient of a head is that of its group.

    Lengths below, at and above the multiple to which cuDNN's sequences are padded.
    """
    lengths = [1, 128, 130]
    query, key, value = (torch.randn(sum(lengths), heads, 8, requires_grad=True) for heads in (6, 2, 2))
    for kernel in ("per_sample", "cudnn"):
        output = attend(query, key, value, packing_of(lengths, "cpu", kernel))
        gradients = torch.autograd.grad(output.square().sum(), (query, key, value))
        whole = [t.repeat_interleave(3, dim=1) for t in (key, value)]
        expected = attend(query, *whole, packing_of(lengths, "cpu", "per_sample"))
        torch.testing.assert_close(output, expected)
        assert [g.shape for g in gradients] == [query.shape, key.shape, value.shape]
        for found, wanted in zip(
            gradients, torch.autograd.grad(expected.square().sum(), (query, key, value)), strict=True
        ):
            torch.testing.assert_close(found, wanted)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("lengths", [[300, 280, 300], [1, 700], [64, 64, 1024]])
def test_kernels_compute_attention(kernel: str, lengths: list[int]) -> None:
    """Forward and gradients in bfloat16 against float64 on fresh numbers."""
    total = sum(lengths)
    inputs = [torch.randn(total, heads, 120, device="cuda", dtype=torch.bfloat16) for heads in (21, 7, 7)]
    grad = torch.randn(total, 21, 120, device="cuda", dtype=torch.bfloat16)
    found = results(inputs, grad, packing_of(lengths, "cuda", kernel))
    exact = results([t.double().cpu() for t in inputs], grad.double().cpu(), packing_of(lengths, "cpu", "per_sample"))
    for ours, theirs in zip(found, exact, strict=True):
        error = (ours.double().cpu() - theirs).norm() / theirs.norm()
        assert error < 1e-2, float(error)


def results(inputs: list[torch.Tensor], grad: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(*leaves, packing)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.gpu
@needs_gpu
def test_the_choice_on_this_gpu_runs() -> None:
    fastest.cache_clear()
    assert fastest(torch.device("cuda", 0), torch.bfloat16, PUBLISHED) in KERNELS
    for name in ("varlen", "cudnn"):
        assert 0 < attention._trial(name, torch.device("cuda", 0), torch.bfloat16, PUBLISHED) < 1

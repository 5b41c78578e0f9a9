"""Which kernel of attention is taken where; and, on a GPU, that all of them compute the same."""

import logging
from typing import Any

import pytest
import torch

from omnitune.models import attention
from omnitune.models.attention import KERNELS, attend, candidates, fastest
from omnitune.models.packing import Packing

pytestmark = pytest.mark.unit

PUBLISHED = (21, 7, 120)
HOPPER = (9, 0)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def packing_of(lengths: list[int], device: str, kernel: str) -> Packing:
    ids = [(number, torch.zeros(length, 3, dtype=torch.int64)) for number, length in enumerate(lengths)]
    return Packing(ids, (2, 2, 2), torch.device(device), kernel)


@pytest.mark.parametrize(
    ("capability", "shape", "expected"),
    [
        (HOPPER, PUBLISHED, ["varlen", "cudnn"]),
        (HOPPER, (8, 8, 128), ["varlen"]),  # no channel left to mark padding in cuDNN's heads
        (HOPPER, (3, 1, 20), ["per_sample"]),  # no multiple of 8
        ((8, 0), PUBLISHED, ["varlen", "cudnn"]),
        ((7, 5), PUBLISHED, ["per_sample"]),
    ],
)
def test_candidates_of_a_gpu(capability: Any, shape: Any, expected: list[str]) -> None:
    assert candidates(capability, shape) == expected


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that this machine need not have: its capability, what cuDNN takes there, and how long kernels take."""

    def put(capability: tuple[int, int], seconds: dict[str, float], takes: bool = True) -> list[str]:
        tried: list[str] = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(attention, "_cudnn_takes", lambda *_: takes)
        monkeypatch.setattr(attention, "_trial", lambda name, *_: tried.append(name) or seconds[name])
        fastest.cache_clear()
        return tried

    yield put
    fastest.cache_clear()


def choose(dtype: torch.dtype = torch.bfloat16, shape: Any = PUBLISHED) -> str:
    return fastest(torch.device("cuda", 0), dtype, shape)


@pytest.mark.parametrize("faster", ["varlen", "cudnn"])
def test_a_trial_decides_once_and_the_log_says_it(faster: str, gpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    seconds = {"varlen": 0.002, "cudnn": 0.002} | {faster: 0.001}
    tried = gpu(HOPPER, seconds)
    with caplog.at_level(logging.INFO, "omnitune"):
        assert [choose(), choose()] == [faster, faster]
    assert tried == ["varlen", "cudnn"]
    assert f"attention by {faster}, by a trial" in caplog.text and f"{faster} 1.0 ms" in caplog.text


def test_what_cudnn_does_not_take_is_left_to_flash_attention(gpu: Any) -> None:
    assert not gpu(HOPPER, {}, takes=False)
    assert choose() == "varlen"


def test_float32_and_other_devices_take_torchs_choice(gpu: Any) -> None:
    gpu(HOPPER, {})
    assert choose(torch.float32) == "per_sample"
    assert fastest(torch.device("cpu"), torch.bfloat16, PUBLISHED) == "per_sample"


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


def test_lengths_share_plans(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_grouped_heads_are_not_copied() -> None:
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
    assert choose() in KERNELS
    for name in ("varlen", "cudnn"):
        assert 0 < attention._trial(name, torch.device("cuda", 0), torch.bfloat16, PUBLISHED) < 1

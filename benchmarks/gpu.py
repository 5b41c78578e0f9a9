"""For a machine with a GPU: steps of the full-size model, by kernel of attention, compiled or not. Written, and run nowhere yet.

Weights are random and in bfloat16, as are gradients and the moments of AdamW, so that full-parameter training fits into 80 GB:
8 bytes for each of 3.97 billion parameters. Training keeps float32 weights and moments; this compares forms of a step.
"""

import itertools
import time

import torch
from rich.table import Table

from omnitune.flops import ModelFlops, SampleTokens, peak_flops
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.lora import lora_config
from omnitune.models.transformer_omnigen2 import OmniGen2Attention

WARM_UP, STEPS = 3, 10
SIDE = 128  # of a 1024 x 1024 image's latent
TEXT_TOKENS = (300, 280)  # not equal, as in training: equal sequences would share a call
SAMPLES = len(TEXT_TOKENS)
DTYPE = torch.bfloat16
RANK = 8


def build(lora: bool, compile_blocks: bool) -> OmniGen2Transformer2DModel:
    """The published architecture on the GPU, ready to train under gradient checkpointing."""
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel().to(DTYPE)
    model = model.to_empty(device="cuda")
    model.initialize_weights()
    if lora:
        model.requires_grad_(False)
        model.add_adapter(lora_config(RANK))
    model.enable_gradient_checkpointing()
    if compile_blocks:
        model.compile_blocks()
    return model.train()


def step(model: OmniGen2Transformer2DModel, optimizer: torch.optim.Optimizer) -> None:
    """One step on random samples: a 1024 x 1024 image from one reference of that size."""
    latents, references, targets = (list(torch.randn(SAMPLES, 16, SIDE, SIDE, device="cuda")) for _ in range(3))
    text = torch.randn(SAMPLES, max(TEXT_TOKENS), model.config.text_feat_dim, device="cuda", dtype=DTYPE)
    mask = torch.arange(max(TEXT_TOKENS)) < torch.tensor(TEXT_TOKENS)[:, None]
    times = torch.rand(SAMPLES, device="cuda")
    outputs = model(latents, times, text, mask, [[reference] for reference in references], return_dict=False)[0]
    torch.stack([(a - b).square().mean() for a, b in zip(outputs, targets, strict=True)]).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def measure(lora: bool, kernel: str, compile_blocks: bool) -> list[str]:
    """Samples per second, share of the GPU's peak, and peak memory."""
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    OmniGen2Attention.kernel = kernel  # type: ignore[assignment]
    model = build(lora, compile_blocks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for _ in range(WARM_UP):
        step(model, optimizer)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        step(model, optimizer)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / STEPS
    tokens = (SIDE // model.config.patch_size) ** 2
    flops = ModelFlops(model).training([SampleTokens(text, (tokens,), tokens) for text in TEXT_TOKENS])
    peak = peak_flops(torch.cuda.get_device_name(), DTYPE)
    share = f"{flops / seconds / peak:.1%}" if peak else "peak unknown"
    return [f"{SAMPLES / seconds:.2f}", share, f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"]


def tables() -> list[Table]:
    """One row for each form of a step; a message where there is no GPU."""
    columns = ("trained", "attention", "compiled", "samples/s", "MFU", "peak memory")
    if not torch.cuda.is_available():
        return [Table("topic gpu: this machine has no CUDA GPU, nothing was measured")]
    title = (
        f"Full-size model on {torch.cuda.get_device_name()}: bf16, {SAMPLES} samples of 1024 x 1024 with a reference"
    )
    result = Table(*columns, title=title)
    try:
        for lora, kernel, compiled in itertools.product((True, False), ("varlen", "per_sample"), (False, True)):
            forms = ("LoRA" if lora else "all", kernel, "yes" if compiled else "no")
            result.add_row(*forms, *measure(lora, kernel, compiled))
    finally:
        OmniGen2Attention.kernel = "auto"
    return [result]

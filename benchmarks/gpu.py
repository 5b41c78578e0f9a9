"""For a machine with a CUDA GPU: kernels of attention, steps of the full-size model, generation; weights are random.

python -m benchmarks gpu                              # all parts, the most telling first
python -m benchmarks gpu.step --json step.json        # one of them; figures as JSON too

LoRA steps are those of training: trained weights in float32, frozen matrices in bfloat16, autocast to
bfloat16, every block recomputed, the loop's own objective, clipping and update. Steps of all parameters have weights,
gradients and moments in bfloat16 (8 bytes a parameter), so that they fit into 80 GB; training holds these in float32.
Each part stops taking up variants when its time is over.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from omnitune.config.experiment.training import TrainOptions, TransportOptions
from omnitune.distributed import parallel
from omnitune.flops import ModelFlops, SampleTokens, peak_flops
from omnitune.models import OmniGen2Transformer2DModel
from omnitune.models.transformer.attention import KERNELS, attend, fastest
from omnitune.models.transformer.packing import Packing
from omnitune.training.flow_matching import Conditioned, latent_elements, loss_weights, velocity_errors
from omnitune.training.model import hold_frozen, select_trained
from omnitune.training.optimizer import build_optimizers, clear_gradients, update

DEVICE = "cuda"
CONFIG: dict[str, Any] = {}  # of the transformer; empty is the published one
SIDE = 128  # of a 1024 x 1024 image's latent
TEXT_TOKENS = (300, 280)  # not equal, as in training: equal sequences would share a call
WARM_UP, STEPS = 2, 4
DTYPE = torch.bfloat16
SECONDS = {"attention": 40, "step": 110, "full": 60, "generate": 30, "compile": 120}
LORA = {"lora_ft": True, "lora_rank": 8, "mixed_precision": "bf16"}

Row = dict[str, Any]


def synchronized() -> float:
    """The time when the GPU has done all that it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Seconds of a call, the mean of so many."""
    started = synchronized()
    for _ in range(repeats):
        function()
    return (synchronized() - started) / repeats


def build(train: TrainOptions, dtype: torch.dtype) -> OmniGen2Transformer2DModel:
    """The published architecture with random weights on the GPU, ready to train under gradient checkpointing."""
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel(**CONFIG).to(dtype)
    model = model.to_empty(device=DEVICE)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    select_trained(model, train)
    model.enable_gradient_checkpointing()
    return model.to(DEVICE).train()


def batch(texts: tuple[int, ...]) -> list[Conditioned]:
    """Random samples: an image of 1024 x 1024 from one reference of that size."""
    width = CONFIG.get("text_feat_dim", 2048)
    channels = CONFIG.get("in_channels", 16)
    samples = []
    for text in texts:
        target, reference, noise = torch.randn(3, channels, SIDE, SIDE, device=DEVICE).unbind()
        features = torch.randn(text, width, device=DEVICE)
        samples.append(Conditioned(target, [reference], features, noise, torch.rand(()), 0, "", ""))
    return samples


class Steps:
    """Optimizer steps of a model as training takes them."""

    def __init__(self, model: Any, train: TrainOptions, autocast: bool) -> None:
        self.model, self.train, self.autocast = model, train, autocast
        self.optimizers = build_optimizers(model, train, {})

    def step(self, texts: tuple[int, ...]) -> None:
        """One step of fresh random samples."""
        samples, transport = batch(texts), TransportOptions()
        times = torch.rand(len(samples), device=DEVICE)
        with torch.autocast(DEVICE, DTYPE, enabled=self.autocast):
            errors = velocity_errors(self.model, samples, times)
        loss = (errors * loss_weights(times, transport)).sum() / float(latent_elements(samples).sum())
        loss.backward()
        norm = float(parallel.gradient_norm(self.model))
        if norm > self.train.max_grad_norm:
            parallel.scale_gradients(self.model, self.train.max_grad_norm / norm)
        update(self.optimizers, self.train.learning_rate)
        clear_gradients(self.optimizers)

    def measured(self, texts: list[tuple[int, ...]] | None = None) -> Row:
        """Seconds of a step, share of the GPU's peak, memory; `texts`: tokens of the texts of each step."""
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        texts = texts or STEPS * [TEXT_TOKENS]
        started = synchronized()
        for _ in range(WARM_UP):
            self.step(TEXT_TOKENS)
        warm, started = synchronized() - started, time.perf_counter()
        for lengths in texts:
            self.step(lengths)
        seconds = (synchronized() - started) / len(texts)
        tokens, counted = (SIDE // self.model.config.patch_size) ** 2, ModelFlops(self.model)
        flops = [counted.training([SampleTokens(text, (tokens,), tokens) for text in lengths]) for lengths in texts]
        peak = peak_flops(torch.cuda.get_device_name(), DTYPE) if DEVICE == "cuda" else None
        memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
        row: Row = {"s/step": round(seconds, 3), "samples/s": round(len(TEXT_TOKENS) / seconds, 2)}
        row["MFU"] = round(sum(flops) / len(texts) / seconds / peak, 3) if peak else None
        return row | {"GiB": round(memory, 1), "s of the first two": round(warm, 1)}


def lengths_of_no_step_before(first: int) -> list[tuple[int, ...]]:
    """Texts of eight steps, of lengths that are all different."""
    return [tuple(text + first + 37 * number for text in TEXT_TOKENS) for number in range(8)]


def attention() -> Iterator[Row]:
    """A layer's attention at the model's shapes, without the rest: forward, and forward and backward."""
    model = {"num_attention_heads": 21, "num_kv_heads": 7, "hidden_size": 2520} | CONFIG
    heads, kv_heads = model["num_attention_heads"], model["num_kv_heads"]
    size = model["hidden_size"] // heads
    tokens = SIDE * SIDE // 4
    lengths = [text + 2 * tokens for text in TEXT_TOKENS]
    flops = 4 * heads * size * sum(length**2 for length in lengths)
    names = ["per_sample"] if DEVICE == "cpu" else list(KERNELS)
    reference: list[torch.Tensor] = []
    yield {"kernel": "auto is " + fastest(torch.device(DEVICE, 0), DTYPE, (heads, kv_heads, size))}
    for name in names:
        generator = torch.Generator(DEVICE).manual_seed(0)
        query, key, value, grad = (
            torch.randn(sum(lengths), n, size, device=DEVICE, dtype=DTYPE, generator=generator)
            for n in (heads, kv_heads, kv_heads, heads)
        )
        inputs = [tensor.requires_grad_() for tensor in (query, key, value)]

        def packing(extra: int, name: str = name) -> Packing:
            sizes = [lengths[0] - extra, lengths[1] + extra]  # as many tokens, cut elsewhere
            ids = [(number, torch.zeros(n, 3, dtype=torch.int64)) for number, n in enumerate(sizes)]
            return Packing(ids, (2, 2, 2), torch.device(DEVICE), name)

        def run(layout: Packing, inputs: list[torch.Tensor] = inputs, grad: torch.Tensor = grad) -> Any:
            output = attend(*inputs, layout)
            return output.detach(), *torch.autograd.grad(output, inputs, grad)

        layout, other = packing(0), packing(7)
        found = run(layout)
        reference = reference or list(found)
        errors = [
            float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(found, reference, strict=True)
        ]
        with torch.no_grad():
            forward = timed(partial(attend, *inputs, layout), 5)
        both = timed(partial(run, layout), 5)
        yield {
            "kernel": name,
            "forward ms": round(1e3 * forward, 2),
            "both ms": round(1e3 * both, 2),
            "TFLOP/s": round(3.5 * flops / both / 1e12),
            "first at new lengths, ms": round(1e3 * timed(partial(run, other), 1), 1),
            "from per_sample": f"{max(errors):.1e}",
        }


def step() -> Iterator[Row]:
    """LoRA steps by kernel and by the precision of frozen weights, and what a step's time goes into."""
    train = TrainOptions(**LORA)
    model = build(train, torch.float32)
    steps = Steps(model, train, autocast=True)
    row = {"trained": "LoRA", "frozen": "bf16"}
    for kernel in ("auto",) if DEVICE == "cpu" else ("cudnn", "varlen"):
        model.attention = kernel
        yield row | {"attention": kernel} | steps.measured()
        yield row | {"attention": f"{kernel}, new lengths"} | steps.measured(lengths_of_no_step_before(1))
        yield row | {"attention": f"{kernel}, more of them"} | steps.measured(lengths_of_no_step_before(4))
    model.attention = "auto"
    yield from profiled(steps)
    hold_frozen(model, torch.float32)
    yield {"trained": "LoRA", "frozen": "fp32", "attention": "auto"} | steps.measured()


KINDS = {  # of kernels, by parts of their names
    "attention": ("flash", "fmha", "sdpa", "cudnn_generated", "attention"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk"),
    "norms": ("norm",),
    "copies, casts": ("copy", "memcpy", "cat", "memset", "fill"),
    "pointwise": ("elementwise", "triton_poi", "gather", "index"),
    "optimizer": ("multi_tensor", "fused_adam"),
}


def profiled(steps: Steps) -> Iterator[Row]:
    """Milliseconds of a step by kind of kernel, and those that take most of what is neither product nor attention."""
    if DEVICE == "cpu":
        return
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        steps.step(TEXT_TOKENS)
        torch.cuda.synchronize()
    kinds: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for event in profiler.key_averages():
        seconds = event.self_device_time_total / 1e3
        if event.device_type != torch.autograd.DeviceType.CUDA or not seconds:
            continue
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        kinds[kind] += seconds
        if kind not in {"attention", "matrix products"}:
            rest[f"{event.key[:150]} x{event.count}"] += seconds
    yield {"trained": "LoRA", "milliseconds": {kind: round(ms, 1) for kind, ms in kinds.most_common()}}
    for name, ms in rest.most_common(12):
        yield {"trained": "LoRA", "milliseconds": round(ms, 1), "kernel": name}


def full() -> Iterator[Row]:
    """Steps of all parameters, weights and moments in bfloat16."""
    train = TrainOptions(mixed_precision="bf16")
    steps = Steps(build(train, DTYPE), train, autocast=False)
    for kernel in ("auto",) if DEVICE == "cpu" else ("cudnn", "varlen"):
        steps.model.attention = kernel
        yield {"trained": "all", "frozen": "-", "attention": kernel} | steps.measured()


def compile_() -> Iterator[Row]:
    """LoRA steps with compiled blocks; with the seconds of the first two steps, which compile."""
    train = TrainOptions(**LORA)
    for kernel in ("auto",) if DEVICE == "cpu" else ("cudnn", "varlen"):
        torch.compiler.reset()
        model = build(train, torch.float32)
        model.attention = kernel
        model.compile_blocks()
        yield {"trained": "LoRA", "frozen": "bf16", "attention": f"{kernel}, compiled"} | Steps(
            model, train, True
        ).measured()
        del model


def generate() -> Iterator[Row]:
    """Forwards without gradients as of two guidance branches; of a sampling step with references and without."""
    with torch.no_grad():
        model = build(TrainOptions(mixed_precision="bf16"), DTYPE).eval()
        for kernel in ("auto",) if DEVICE == "cpu" else ("cudnn", "varlen"):
            model.attention = kernel
            for references in (0, 1):
                samples = batch(TEXT_TOKENS)
                times = torch.rand(len(samples), device=DEVICE)
                for sample in samples if not references else []:
                    sample.references.clear()
                forward = partial(velocity_errors, model, samples, times)
                forward()
                yield {"references": references, "attention": kernel, "forward ms": round(1e3 * timed(forward, 5), 1)}


PARTS = {"attention": attention, "step": step, "compile": compile_, "full": full, "generate": generate}


def tables(part: str | None = None) -> Iterator[Table]:
    """A table for each part, or for one; a message where there is no GPU."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        yield Table("topic gpu: this machine has no CUDA GPU, nothing was measured")
        return
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    for key, rows in PARTS.items() if part is None else [(part, PARTS[part])]:
        yield _table(f"gpu.{key} on {name}", _within(rows(), SECONDS[key]))
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def _within(rows: Iterator[Row], seconds: float) -> list[Row]:
    """The rows that begin within so many seconds; a failure is a row, and the last."""
    until, found = time.perf_counter() + seconds, []
    try:
        for row in rows:
            found.append(row)
            print(row, flush=True)
            if time.perf_counter() > until:
                found.append({"note": f"stopped after {seconds} s"})
                break
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # the other parts are measured all the same
        found.append({"note": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"})
    return found


def _table(title: str, rows: list[Row]) -> Table:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    RESULTS[title] = rows
    return table


RESULTS: dict[str, list[Row]] = {}  # what was measured so far, for JSON

"""A batch of samples of different sizes, forward and backward: as it is, padded, and one by one."""

import time
from collections.abc import Callable

import torch
from rich.table import Table

from omnitune.models import OmniGen2Transformer2DModel

THREADS = 2
REPEATS = 2
ARCHITECTURE = {
    "hidden_size": 384,
    "num_layers": 3,
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "axes_dim_rope": (16, 16, 16),
    "axes_lens": (4096, 512, 512),
    "text_feat_dim": 256,
}
# Text tokens, image side and sides of references, in tokens: a mixed batch as training on several tasks has them.
MIXED = ((40, 32, (32,)), (120, 32, ()), (25, 16, (16, 20)), (13, 24, ()))


def sample(text: int, side: int, references: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A random latent, text features and reference latents."""
    return (
        torch.randn(16, 2 * side, 2 * side),
        torch.randn(text, 256),
        [torch.randn(16, 2 * r, 2 * r) for r in references],
    )


def step(model: torch.nn.Module, samples: list[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]]) -> None:
    """Forward and backward of a batch."""
    lengths = [len(text) for _, text, _ in samples]
    features = torch.nn.utils.rnn.pad_sequence([text for _, text, _ in samples], batch_first=True)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    outputs = model(
        [latent for latent, _, _ in samples],
        torch.rand(len(samples)),
        features,
        mask.long(),
        [references for _, _, references in samples],
        return_dict=False,
    )[0]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    model.zero_grad()


def seconds(work: Callable[[], None]) -> float:
    """Best of a few runs after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def tables() -> list[Table]:
    """A mixed batch as it is, against one that is padded to its longest sample, and against its samples one by one."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = OmniGen2Transformer2DModel(**ARCHITECTURE)
    samples = [sample(*entry) for entry in MIXED]
    longest = max(MIXED, key=lambda entry: entry[0] + entry[1] ** 2 + sum(side**2 for side in entry[2]))
    rows = {
        "padded to the longest sample": seconds(lambda: step(model, [sample(*longest) for _ in MIXED])),
        "one by one": seconds(lambda: [step(model, [one]) for one in samples] and None),
        "mixed batch, as training runs it": seconds(lambda: step(model, samples)),
    }
    result = Table(
        "form",
        "seconds",
        "ratio",
        title=f"Forward and backward of a mixed batch (fp32, hidden 384, 3 layers, {THREADS} threads)",
    )
    reference = rows["padded to the longest sample"]
    for name, value in rows.items():
        result.add_row(name, f"{value:.2f}", f"{value / reference:.2f}")
    return [result]

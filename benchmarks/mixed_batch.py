"""A batch of samples of different sizes, forward and backward: padded, one by one, and packed as training runs it."""

import time
from collections.abc import Callable

import torch
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence

from benchmarks.padded import Sample, padded_forward
from omnitune.models import OmniGen2Transformer2DModel

THREADS = 2
ROUNDS = 7
TOLERANCE = 1e-5
ARCHITECTURE = {
    "hidden_size": 384,
    "num_layers": 6,
    "num_attention_heads": 8,
    "num_kv_heads": 4,
    "axes_dim_rope": (16, 16, 16),
    "axes_lens": (4096, 512, 512),
    "text_feat_dim": 256,
}
# Text tokens, image side and sides of references, in tokens: 2088, 1272, 921 and 1037 tokens together.
MIXED = ((40, 32, (32,)), (248, 32, ()), (85, 18, (16, 16)), (13, 32, ()))
PADDED, ONE_BY_ONE, PACKED = "padded to the longest", "one by one", "packed, as training runs it"


def random_model() -> OmniGen2Transformer2DModel:
    """A model whose modulations and output are random as well: a new one would predict zero."""
    model = OmniGen2Transformer2DModel(**ARCHITECTURE)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def random_sample(text: int, side: int, references: tuple[int, ...]) -> Sample:
    """A latent, text features and reference latents."""
    latents = [torch.randn(16, 2 * length, 2 * length) for length in (side, *references)]
    return latents[0], torch.randn(text, ARCHITECTURE["text_feat_dim"]), latents[1:]


def packed_forward(
    model: OmniGen2Transformer2DModel, samples: list[Sample], timestep: torch.Tensor
) -> list[torch.Tensor]:
    """The model's prediction for each sample, of one packed batch."""
    latents, texts, references = (list(part) for part in zip(*samples, strict=True))
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return model(latents, timestep, pad_sequence(texts, batch_first=True), mask, references, return_dict=False)[0]


def forms(model: OmniGen2Transformer2DModel, samples: list[Sample]) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """Forward and backward of the batch in each form; they return the predictions and leave the gradients."""
    timestep = torch.linspace(0.1, 0.9, len(samples))

    def learn(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        return [output.detach() for output in outputs]

    def one_by_one() -> list[torch.Tensor]:
        pairs = zip(samples, timestep.split(1), strict=True)
        return [learn(packed_forward(model, [sample], time))[0] for sample, time in pairs]

    return {
        PADDED: lambda: learn(padded_forward(model, samples, timestep)),
        ONE_BY_ONE: one_by_one,
        PACKED: lambda: learn(packed_forward(model, samples, timestep)),
    }


def check_equal(model: torch.nn.Module, works: dict[str, Callable[[], list[torch.Tensor]]]) -> None:
    """Raises unless every form computes the same predictions and gradients."""
    expected: list[torch.Tensor] = []
    for name, work in works.items():
        model.zero_grad()
        found = [*work(), *(parameter.grad / parameter.grad.norm() for parameter in model.parameters())]
        expected = expected or found
        worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        if worst > TOLERANCE:
            raise RuntimeError(f"{name}: differs by {worst:.1e} from {PADDED}")


def interleaved(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in every round; a round runs all of them, one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def tables() -> list[Table]:
    """The fastest of interleaved rounds, and their ratios: other work on the machine only ever slows one down."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = random_model()
    samples = [random_sample(*entry) for entry in MIXED]
    works = forms(model, samples)
    check_equal(model, works)
    seconds = interleaved(works, ROUNDS)
    title = f"Forward and backward of a mixed batch (fp32, hidden 384, 6 layers, {THREADS} threads, {ROUNDS} rounds)"
    result = Table("form", "seconds", "to padded", "to one by one", title=title)
    fastest = {name: min(values) for name, values in seconds.items()}
    for name, value in fastest.items():
        ratios = (value / fastest[other] for other in (PADDED, ONE_BY_ONE))
        result.add_row(name, f"{value:.2f}", *(f"{ratio:.2f}" for ratio in ratios))
    return [result]

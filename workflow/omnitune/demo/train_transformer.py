"""Train the demo's base model: `python -m omnitune.demo.train_transformer --output folder --seconds 380`.

Rectified flow on captions, edits and compositions of the demo's world without what the demo teaches later. Random
numbers come from the seed, so that the same number of steps on the same kind of machine gives the same weights. With
--seconds that number is set by the speed of the first steps. Written are transformer.safetensors (bfloat16), the
averaged weights that did best on the prompts for choosing; transformer.json with their SHA-256, the settings and the
figures of all evaluations; and transformer.png. It takes six minutes on an H200; the package has what came of it.
"""

import argparse
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnitune.demo.base_data import PATCH_VALUES, PATCHES, REFERENCES, Tables, build_tables
from omnitune.demo.base_model import WEIGHTS, build_base_model, build_transformer
from omnitune.demo.base_score import contact_sheet, draw, scored_drafts, shares
from omnitune.demo.dataset import BASE_TASKS
from omnitune.demo.padded import PaddedBatch, padded_forward
from omnitune.io.files import sha256_of, write_json
from omnitune.models import OmniGen2Pipeline, OmniGen2Transformer2DModel
from omnitune.models.encoder import FrozenEncoder, latent_scaling

FINISHING = 35.0  # seconds that are kept for the last evaluations
NOISE_SHIFT = 0.459375  # of the logits of times: what fine-tuning shifts images of PATCHES tokens by
MEASURED = (100, 200)  # the steps whose speed sets the number of all


@dataclass
class Settings:
    """Hyper-parameters, chosen on the prompts of part "choosing"."""

    steps: int = 0  # 0: as many as fit into `seconds`
    seconds: float = 0.0  # of everything
    batch: int = 512
    samples: int = 80_000
    chunk: int = 250  # samples that are drawn from one seed
    learning_rate: float = 2e-3
    final_rate: float = 0.01  # of the learning rate, at the end of a cosine
    warmup: int = 300
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    drop_text: float = 0.1
    drop_references: float = 0.7  # of those whose text is dropped
    evaluations: int = 5
    prompts: int = 60  # of each task, for choosing and at the end
    workers: int = 1
    seed: int = 0


# A few steps on the CPU, whose losses are written down too: whether the script still does what it did can be seen in
# seconds.
REHEARSAL = Settings(steps=20, batch=16, samples=60, chunk=20, warmup=5)


def draw_batch(tables: Tables, settings: Settings, generator: torch.Generator) -> tuple[PaddedBatch, Tensor]:
    """A batch and its velocities [B, PATCHES, PATCH_VALUES]; half of the times are uniform, half as in fine-tuning."""
    device, count = tables.samples.device, settings.batch
    own = torch.randint(len(tables.samples), (count,), generator=generator, device=device)
    chance = torch.rand(3, count, generator=generator, device=device)
    dropped = chance[0] < settings.drop_text
    rows = tables.samples[own]
    pictures, texts = rows[:, : REFERENCES + 1].clone(), rows[:, REFERENCES + 1] * ~dropped
    pictures[:, :REFERENCES] *= ~(dropped & (chance[1] < settings.drop_references))[:, None]
    noise = torch.randn(2, count, REFERENCES + 1, PATCHES, PATCH_VALUES, generator=generator, device=device)
    latents = tables.means[pictures] + tables.deviations[pictures] * noise[0]
    normal = torch.randn(count, generator=generator, device=device)
    times = torch.where(chance[2] < 0.5, chance[2] * 2, (normal - NOISE_SHIFT).sigmoid())
    target, start = latents[:, -1], noise[1, :, -1]
    noisy = start + times[:, None, None] * (target - start)
    grids = tables.grids[pictures]
    batch = PaddedBatch(noisy, times, tables.texts[texts], tables.lengths[texts], latents[:, :-1], grids)
    return batch, target - start


def flow_loss(model: OmniGen2Transformer2DModel, batch: PaddedBatch, velocity: Tensor) -> Tensor:
    """Mean squared error of the velocity over the patches that are there."""
    errors = (padded_forward(model, batch).float() - velocity).square().mean(-1)
    mask = batch.image_mask()[:, -1]
    return (errors * mask).sum() / mask.sum()


class BaseTraining:
    """The model, its average and its optimizer; `step` takes one step and returns the loss, on the device."""

    def __init__(self, tables: Tables, settings: Settings, device: torch.device) -> None:
        self.tables, self.settings, self.device = tables, settings, device
        self.model = build_transformer(settings.seed).to(device).train()
        self.weights = list(self.model.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(
            self.weights, betas=(0.9, 0.99), weight_decay=settings.weight_decay, fused=device.type == "cuda"
        )
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.loss = torch.compile(flow_loss) if device.type == "cuda" else flow_loss
        self.done = 0

    def learning_rate(self, steps: int) -> float:
        s = self.settings
        if self.done < s.warmup:
            return s.learning_rate * (self.done + 1) / s.warmup
        share = min(1.0, (self.done - s.warmup) / max(1, steps - s.warmup))
        return s.learning_rate * (s.final_rate + (1 - s.final_rate) * 0.5 * (1 + math.cos(math.pi * share)))

    def step(self, steps: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(steps)
        batch, velocity = draw_batch(self.tables, self.settings, self.generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(self.model, batch, velocity)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.done += 1
        decay = min(self.settings.ema_decay, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(self.average, [weight.detach() for weight in self.weights], 1 - decay)
        return loss.detach()

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights in bfloat16, on the CPU."""
        names = [name for name, _ in self.model.named_parameters()]
        return {name: weight.bfloat16().cpu() for name, weight in zip(names, self.average, strict=True)}


def score(pipeline: OmniGen2Pipeline, weights: dict[str, Tensor], part: str, count: int, guidance: float = 1.5) -> Any:
    """What the check says of `count` prompts of each task of a part: shares, and the pictures themselves."""
    pipeline.transformer.load_state_dict({name: weight.float() for name, weight in weights.items()})
    drawn = {task: draw(pipeline, drafts, guidance) for task, drafts in scored_drafts(part, count).items()}
    return {task: shares(own) for task, own in drawn.items()}, drawn


def make_tables(pretrained: Path, settings: Settings, device: torch.device) -> Tables:
    """What a training with these settings draws its batches from."""
    encoder = FrozenEncoder(
        pretrained,
        device,
        text_dtype=torch.float32,
        max_text_tokens=128,
        use_chat_template=True,
        batch_pixels=2**22,
    )
    counts = (settings.samples, settings.chunk, settings.seed, settings.workers)
    return build_tables(encoder, latent_scaling(pretrained), *counts)


def rehearse(pretrained: Path) -> list[float]:
    """The losses of REHEARSAL's steps, on the CPU."""
    device = torch.device("cpu")
    training = BaseTraining(make_tables(pretrained, REHEARSAL, device), REHEARSAL, device)
    return [round(training.step(REHEARSAL.steps).item(), 4) for _ in range(REHEARSAL.steps)]


def train_base(output: Path, settings: Settings, pretrained: Path, device: torch.device, start: float) -> None:
    """Trains, evaluates and writes (see the module). `start` is when --seconds began to count."""
    output.mkdir(parents=True, exist_ok=True)
    tables = make_tables(pretrained, settings, device)
    _say(start, f"{len(tables.samples)} samples, {len(tables.texts)} texts of up to {tables.texts.shape[1]} tokens")
    training = BaseTraining(tables, settings, device)
    pipeline = OmniGen2Pipeline.from_pretrained(pretrained, transformer=build_transformer(settings.seed).to(device)).to(
        device
    )
    size = sum(weight.numel() for weight in training.weights)
    figures: dict[str, Any] = {"settings": asdict(settings), "parameters": size, "losses": {}, "choosing": {}}
    _train(training, pipeline, figures, output, start)
    _finish(pipeline, figures, output, settings.prompts)
    figures["rehearsal"] = rehearse(pretrained)
    write_json(output / WEIGHTS.with_suffix(".json").name, figures)
    _say(start, "done")


def _train(
    training: BaseTraining, pipeline: OmniGen2Pipeline, figures: dict[str, Any], output: Path, start: float
) -> None:
    settings = training.settings
    steps, begun, best, reserve = settings.steps, 0.0, -1.0, FINISHING
    window: list[Tensor] = []
    while True:
        if not settings.steps and training.done in MEASURED:
            _synchronize(training.device)
            if training.done == MEASURED[1]:
                rate = (time.monotonic() - begun) / (MEASURED[1] - MEASURED[0])
                left = settings.seconds - (time.monotonic() - start) - reserve - 10 * settings.evaluations
                steps = figures["steps"] = max(training.done + 1, training.done + int(left / rate))
                _say(start, f"{1000 * rate:.1f} ms a step, so {steps} steps")
            begun = time.monotonic()
        window.append(training.step(steps or 10**9))
        if training.done % 100 == 0 or training.done == steps:
            figures["losses"][training.done] = round(torch.stack(window).mean().item(), 5)
            window.clear()
            if training.done % 1000 == 0 or training.done < 1000:
                _say(start, f"step {training.done} loss {figures['losses'][training.done]}")
        late = settings.seconds and time.monotonic() - start > settings.seconds - reserve
        ends = late or training.done == steps
        every = max(1, (steps or 10**9) // settings.evaluations)
        if ends or training.done % every == 0:
            weights = training.averaged()
            found, _ = score(pipeline, weights, "choosing", settings.prompts)
            figures["choosing"][training.done] = found
            mean = sum(found[task]["passed"] for task in BASE_TASKS) / len(BASE_TASKS)
            if mean >= best:
                best, figures["best_step"] = mean, training.done
                save_file(weights, output / WEIGHTS.name)
            write_json(output / WEIGHTS.with_suffix(".json").name, figures)
            _say(start, f"step {training.done}: " + " ".join(f"{t} {v['passed']:.3f}" for t, v in found.items()))
        if ends:
            return


def _finish(pipeline: OmniGen2Pipeline, figures: dict[str, Any], output: Path, count: int) -> None:
    """Scores the best weights on held-out prompts, and without guidance on those for choosing; draws the sheet."""
    weights = load_file(output / WEIGHTS.name)
    figures["sha256"] = sha256_of(output / WEIGHTS.name)
    figures["heldout"], drawn = score(pipeline, weights, "heldout", count)
    contact_sheet(list(drawn.values())).save(output / WEIGHTS.with_suffix(".png").name)
    figures["choosing_without_guidance"], _ = score(pipeline, weights, "choosing", count, 1.0)
    for name in ("heldout", "choosing_without_guidance"):
        print(name, {task: values["passed"] for task, values in figures[name].items()}, flush=True)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _say(start: float, text: str) -> None:
    print(f"{time.monotonic() - start:6.1f} s {text}", flush=True)


def main() -> None:
    """Command line."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for what is written")
    parser.add_argument(
        "--pretrained", type=Path, help="pipeline folder with VAE and text encoder; built where not given"
    )
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = vars(parser.parse_args())
    output, pretrained = arguments.pop("output"), arguments.pop("pretrained")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    with TemporaryDirectory() as folder:
        if pretrained is None:
            pretrained = Path(folder) / "demo"
            build_base_model(pretrained, make_transformer=build_transformer)
        train_base(output, Settings(**arguments), pretrained, device, start)


if __name__ == "__main__":
    main()

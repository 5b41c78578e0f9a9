"""Generate a benchmark's images with given weights, in parts that jobs can share, and held-out losses beside them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omnitune.config import Benchmark
from omnitune.console import Progress
from omnitune.conversion.tensors import PRECISIONS
from omnitune.evaluation.conditions import Conditions
from omnitune.evaluation.loss import heldout_losses, loss_times
from omnitune.evaluation.prompts import (
    Prompt,
    image_seed,
    open_image,
    part_of,
    protocol_fingerprint,
    read_prompts,
)
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights, require_there
from omnitune.images.decode import own_limits
from omnitune.images.formats import FORMATS
from omnitune.images.resize import to_pil
from omnitune.io.files import atomic_path, is_whole, json_line, lock, sealed, sha256_of, write_text
from omnitune.io.json_object import parse_json
from omnitune.models import (
    OmniGen2DPMSolverScheduler,
    OmniGen2FlowMatchScheduler,
    OmniGen2Pipeline,
    read_transformer,
)
from omnitune.paths import GENERATIONS_FILE
from omnitune.pretrained.weights import check_weights

SCHEDULERS = {"euler": OmniGen2FlowMatchScheduler, "dpmsolver++": OmniGen2DPMSolverScheduler}


def load_pipeline(
    base: Path | str,
    transformer: Path | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    *,
    dtype: str = "bf16",
    scheduler: str = "euler",
    device: torch.device | str | None = None,
    threads: int | None = None,
) -> OmniGen2Pipeline:
    """The pipeline to sample with.

    Args:
        base: pipeline folder, or a repository id.
        transformer: folder of a converted transformer in place of the base's.
        loras: folder or file of each adapter that is loaded on top, and its strength.
        dtype: fp32, bf16 or fp16 of all weights.
        scheduler: euler or dpmsolver++.
        device: None takes a GPU if there is one.
        threads: CPU threads of torch; None leaves them.

    Raises:
        ValueError, OSError: for an unknown dtype or scheduler, or weights that are missing or do not fit.
    """
    for name, value, known in (("dtype", dtype, list(PRECISIONS)), ("scheduler", scheduler, list(SCHEDULERS))):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is not allowed: needs one of {', '.join(known)}.")
    if threads:
        torch.set_num_threads(threads)
    components: dict[str, Any] = {}
    if transformer is not None:
        components["transformer"] = read_transformer(transformer, PRECISIONS[dtype])
    pipeline = OmniGen2Pipeline.from_pretrained(base, torch_dtype=PRECISIONS[dtype], **components)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    names = [f"adapter_{number}" for number in range(len(loras))]
    for name, (lora, _) in zip(names, loras, strict=True):
        pipeline.load_lora_weights(lora, adapter_name=name)
    if names:
        pipeline.set_adapters(names, [strength for _, strength in loras])
    pipeline.transformer.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def generate_part(
    benchmark: Benchmark, weights: EvaluatedWeights, output: Path, *, part: int, threads: int, name: str
) -> Path:
    """Loads the weights and generates one part of a benchmark's images, see `generate`."""
    prompts = read_prompts(benchmark, Path())
    require_there(weights)
    check_weights(weights.folders)
    loras = [(weights.lora, weights.lora_scale)] if weights.lora else []
    where = (weights.base, weights.transformer, loras)
    pipeline = load_pipeline(*where, dtype=benchmark.dtype, scheduler=benchmark.scheduler, threads=threads)
    return generate(benchmark, prompts, pipeline, output, weights=describe_weights(weights), part=part, name=name)


@dataclass(frozen=True)
class _Job:
    """What all prompts of one call have in common.

    Attributes:
        benchmark: the protocol.
        conditions: of its images, with the pipeline.
        output: evaluation/{step}/{benchmark}.
        ledger: where each image is noted as soon as it is drawn.
        weights: what they are drawn with.
        protocols: hash of the protocol, by the key of the prompt.
    """

    benchmark: Benchmark
    conditions: Conditions
    output: Path
    ledger: Path
    weights: dict[str, Any]
    protocols: Mapping[str, str]


def generate(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    pipeline: OmniGen2Pipeline,
    output: Path,
    *,
    weights: dict[str, Any],
    part: int = 0,
    name: str = "",
    each_alone: bool = False,
) -> Path:
    """Generates one part of a benchmark's images: images/{key}.png, then parts/{part}.jsonl, which completes it.

    A prompt's image depends on its key, the protocol and the weights alone, not on batch size, parts or order (but for
    the rounding of batched matrix products). Images that are there, of the same protocol and weights, are kept: those
    of an interrupted run, and those of a finished one of which something was lost. An image whose numbers are not
    finite is none: its row says so, and it is not written.

    Args:
        benchmark: the protocol; `parts` says into how many jobs the prompts are cut.
        prompts: all of the benchmark's, from `read_prompts`.
        pipeline: from `load_pipeline`.
        output: evaluation/{step}/{benchmark}.
        weights: from `describe_weights`.
        part: 0 .. parts - 1.
        name: shown with the progress.
        each_alone: other prompts are no part of an image's protocol, so that it is kept when the list changes.

    Returns:
        The path of parts/{part}.jsonl.
    """
    own = part_of(prompts, part, benchmark.parts)
    output = Path(output)
    final = output / "parts" / f"{part}.jsonl"
    ledger = final.with_name(f".{part}.unfinished.jsonl")
    if each_alone:
        protocols = {prompt.key: protocol_fingerprint(benchmark, [prompt]) for prompt in own}
    else:
        protocols = dict.fromkeys((prompt.key for prompt in own), protocol_fingerprint(benchmark, prompts))
    with lock(
        final.with_name(f".{part}.lock"), f"{final}: another process is drawing this part. Wait for it or stop it."
    ):
        conditions = Conditions(pipeline, benchmark)
        _draw_part(_Job(benchmark, conditions, output, ledger, weights, protocols), own, final, name)
    return final


def _draw_part(job: _Job, own: Sequence[Prompt], final: Path, name: str) -> None:
    """Draws what is not there yet, noting each image in a ledger of its own, and writes all rows as `final`."""
    rows = _finished(job, (job.output / GENERATIONS_FILE, final, job.ledger))
    left = [prompt for prompt in own if prompt.key not in rows]
    left.sort(key=lambda prompt: _shape(prompt, job.benchmark))
    write_text(job.ledger, "".join(map(json_line, rows.values())))
    with Progress(f"generate {name or job.output.name}", len(own), "images", len(own) - len(left)) as progress:
        for start in range(0, len(left), job.benchmark.batch_size):
            batch = left[start : start + job.benchmark.batch_size]
            rows |= {row["key"]: row for row in _generate_batch(job, batch)}
            progress.advance(len(batch))
    write_text(final, "".join(json_line(rows[prompt.key]) for prompt in own))
    job.ledger.unlink()


def _shape(prompt: Prompt, benchmark: Benchmark) -> tuple[int, tuple[int, int], list[tuple[int, int]]]:
    """Number of references and sizes: prompts of one shape are drawn together, those of one line in succession."""
    inputs = [_size_of(path) for path in prompt.input_images]
    return len(inputs), _asked_size(prompt, benchmark) or inputs[0], inputs


def _size_of(path: Path) -> tuple[int, int]:
    """(width, height) in pixels of an image, from its header; ValueError where it cannot be read as an image."""
    try:
        with own_limits(), Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception:  # a format's reader may raise anything; what is wrong, our own says
        return open_image(path).size


def _asked_size(prompt: Prompt, benchmark: Benchmark) -> tuple[int, int] | None:
    """(width, height) in pixels of a prompt's image; None where that is its input's."""
    if benchmark.align_res and len(prompt.input_images) == 1:
        return None
    return prompt.size or (benchmark.width, benchmark.height)


def _finished(job: _Job, ledgers: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs that hold, by key: same protocol, same weights, image as written."""
    rows: dict[str, dict[str, Any]] = {}
    for path in ledgers:
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with suppress(ValueError):  # of a line that a kill has cut, or that somebody else wrote
                row = parse_json(line)
                if _holds(job, row):
                    rows[row["key"]] = row
    return rows


def _holds(job: _Job, row: dict[str, Any]) -> bool:
    key = row.get("key")
    if not isinstance(key, str) or row.get("protocol") != job.protocols.get(key, ""):
        return False
    name = f"images/{key}.png"
    same = row.get("weights") == job.weights and row.get("image") == name and is_whole(row)
    return same and (job.output / name).is_file() and sha256_of(job.output / name) == row.get("sha256")


def _generate_batch(job: _Job, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Draws images and measures held-out losses; gives the images' rows."""
    latents = _sample(job, batch)
    with_target = [prompt for prompt in batch if prompt.target and job.benchmark.loss_timesteps]
    losses = heldout_losses(job.conditions, with_target) if with_target else []
    by_key = {prompt.key: values for prompt, values in zip(with_target, losses, strict=True)}
    return [_keep(job, *drawn, by_key) for drawn in zip(batch, latents, strict=True)]


def _keep(job: _Job, prompt: Prompt, latent: Tensor, losses: dict[str, list[float]]) -> dict[str, Any]:
    """Writes an image and notes it in the ledger; gives its row."""
    image, name = _decode(job, prompt, latent), f"images/{prompt.key}.png"
    row = {
        "key": prompt.key,
        "task_type": prompt.task_type,
        "category": prompt.category,
        "instruction": prompt.instruction,
        "image": name if image else None,
        "sha256": None,
        "size": list(image.size) if image else None,
        "seed": image_seed(job.benchmark, prompt),
        "losses": losses.get(prompt.key),
        "loss_times": loss_times(job.benchmark) if prompt.key in losses else None,
        "weights": job.weights,
        "protocol": job.protocols[prompt.key],
    }
    if image is None:
        (job.output / name).unlink(missing_ok=True)
        return _noted(job, {**row, "failed": "its numbers are not finite"})
    with atomic_path(job.output / name) as temporary:
        image.save(temporary, format="PNG")
        # before the image has its name: one that is there is never drawn again
        return _noted(job, {**row, "sha256": sha256_of(temporary)})


def _noted(job: _Job, row: dict[str, Any]) -> dict[str, Any]:
    row = sealed(row)
    with job.ledger.open("a", encoding="utf-8") as file:
        file.write(json_line(row))
    return row


@torch.no_grad()
def _decode(job: _Job, prompt: Prompt, latent: Tensor) -> Image.Image | None:
    """The image of a latent; None where one of its numbers is not finite, which would become a picture all the same."""
    if not latent.isfinite().all():
        return None
    pixels = job.conditions.pipeline.decode_latent(latent, _asked_size(prompt, job.benchmark))
    return to_pil(pixels) if pixels.isfinite().all() else None


def _sample(job: _Job, batch: Sequence[Prompt]) -> list[Tensor]:
    """The latents [C, h, w] of a batch."""
    benchmark, conditions = job.benchmark, job.conditions
    seeds = [image_seed(benchmark, prompt) for prompt in batch]
    sizes = [prompt.size or (benchmark.width, benchmark.height) for prompt in batch]
    result: Any = conditions.pipeline(
        prompt_embeds=[conditions.text(prompt.instruction) for prompt in batch],
        negative_prompt_embeds=[conditions.negative] * len(batch),
        input_images=[[conditions.posterior(path) for path in prompt.input_images] for prompt in batch],
        height=[height for _, height in sizes],
        width=[width for width, _ in sizes],
        align_res=benchmark.align_res,
        num_inference_steps=benchmark.num_inference_steps,
        text_guidance_scale=benchmark.text_guidance_scale,
        image_guidance_scale=benchmark.image_guidance_scale,
        cfg_range=benchmark.cfg_range,
        max_pixels=benchmark.max_pixels,
        max_input_image_side_length=benchmark.max_side_length,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],  # on the CPU: equal on every device
        output_type="latent",
    )
    return list(result.images)

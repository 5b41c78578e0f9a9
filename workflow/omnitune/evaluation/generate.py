"""Generate a benchmark's images with given weights, in parts that jobs can share, and the held-out losses beside them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.config import Benchmark
from omnitune.console import Progress
from omnitune.conversion.tensors import PRECISIONS
from omnitune.evaluation.loss import heldout_losses, loss_times
from omnitune.evaluation.prompts import (
    Prompt,
    negative_prompt,
    open_image,
    part_of,
    prompt_seed,
    protocol_fingerprint,
    read_prompts,
)
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights, require_there
from omnitune.io.files import atomic_path, is_whole, json_line, lock, sealed, sha256_of, write_text
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
    lora: Path | None = None,
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
        lora: folder of a converted adapter, loaded on top.
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
    if lora is not None:
        pipeline.load_lora_weights(lora)
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
    where = (weights.base, weights.transformer, weights.lora)
    pipeline = load_pipeline(*where, dtype=benchmark.dtype, scheduler=benchmark.scheduler, threads=threads)
    return generate(benchmark, prompts, pipeline, output, weights=describe_weights(weights), part=part, name=name)


@dataclass(frozen=True)
class _Job:
    """What all prompts of one call have in common."""

    benchmark: Benchmark
    pipeline: OmniGen2Pipeline
    output: Path
    weights: dict[str, Any]
    protocol: str


def generate(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    pipeline: OmniGen2Pipeline,
    output: Path,
    *,
    weights: dict[str, Any],
    part: int = 0,
    name: str = "",
) -> Path:
    """Generates one part of a benchmark's images: images/{key}.png, then parts/{part}.jsonl, which completes it.

    A prompt's image depends on its key, the protocol and the weights alone, not on batch size, parts or order (but for
    the rounding of batched matrix products). Images that are there, of the same protocol and weights, are kept: those
    of an interrupted run, and those of a finished one of which something was lost.

    Args:
        benchmark: the protocol; `parts` says into how many jobs the prompts are cut.
        prompts: all of the benchmark's, from `read_prompts`.
        pipeline: from `load_pipeline`.
        output: evaluation/{step}/{benchmark}.
        weights: from `describe_weights`.
        part: 0 .. parts - 1.
        name: shown with the progress.

    Returns:
        The path of parts/{part}.jsonl.
    """
    job = _Job(benchmark, pipeline, Path(output), weights, protocol_fingerprint(benchmark, prompts))
    own = part_of(prompts, part, benchmark.parts)
    final = job.output / "parts" / f"{part}.jsonl"
    with lock(
        final.with_name(f".{part}.lock"), f"{final}: another process is drawing this part. Wait for it or stop it."
    ):
        _draw_part(job, own, final, name)
    return final


def _draw_part(job: _Job, own: Sequence[Prompt], final: Path, name: str) -> None:
    """Draws what is not there yet, noting each batch in a ledger of its own, which becomes `final`."""
    benchmark, ledger = job.benchmark, final.with_name(f".{final.stem}.unfinished.jsonl")
    rows = _finished(job, {prompt.key for prompt in own}, (job.output / GENERATIONS_FILE, ledger))
    left = [prompt for prompt in own if prompt.key not in rows]
    write_text(ledger, "".join(map(json_line, rows.values())))
    with Progress(f"generate {name or job.output.name}", len(own), "images", len(own) - len(left)) as progress:
        for start in range(0, len(left), benchmark.batch_size):
            batch = left[start : start + benchmark.batch_size]
            made = _generate_batch(job, batch)
            rows |= {row["key"]: row for row in made}
            with ledger.open("a", encoding="utf-8") as file:
                file.writelines(map(json_line, made))
            progress.advance(len(batch))
    write_text(final, "".join(json_line(rows[prompt.key]) for prompt in own))
    ledger.unlink()


def _finished(job: _Job, keys: set[str], ledgers: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Rows of earlier runs that hold: same protocol, same weights, image as written."""
    rows: dict[str, dict[str, Any]] = {}
    lines = [line for path in ledgers if path.is_file() for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that a kill has cut
            continue
        image = job.output / "images" / f"{row['key']}.png"
        same = row["protocol"] == job.protocol and row["weights"] == job.weights and is_whole(row)
        same = same and row["image"] == f"images/{row['key']}.png"
        if row["key"] in keys and same and image.is_file() and sha256_of(image) == row["sha256"]:
            rows[row["key"]] = row
    return rows


def _generate_batch(job: _Job, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
    benchmark = job.benchmark
    images = _sample(job, batch)
    with_target = [prompt for prompt in batch if prompt.target and benchmark.loss_timesteps]
    losses = heldout_losses(job.pipeline, with_target, benchmark) if with_target else []
    by_key = {prompt.key: values for prompt, values in zip(with_target, losses, strict=True)}
    rows = []
    for prompt, image in zip(batch, images, strict=True):
        path = job.output / "images" / f"{prompt.key}.png"
        with atomic_path(path) as temporary:
            image.save(temporary, format="PNG")
        rows.append(
            sealed(
                {
                    "key": prompt.key,
                    "task_type": prompt.task_type,
                    "instruction": prompt.instruction,
                    "image": f"images/{prompt.key}.png",
                    "sha256": sha256_of(path),
                    "size": list(image.size),
                    "seed": prompt_seed(benchmark.seed, prompt.key),
                    "losses": by_key.get(prompt.key),
                    "loss_times": loss_times(benchmark) if prompt.key in by_key else None,
                    "weights": job.weights,
                    "protocol": job.protocol,
                }
            )
        )
    return rows


def _sample(job: _Job, batch: Sequence[Prompt]) -> list[Image.Image]:
    benchmark = job.benchmark
    seeds = [prompt_seed(benchmark.seed, prompt.key) for prompt in batch]
    result: Any = job.pipeline(
        prompt=[prompt.instruction for prompt in batch],
        negative_prompt=negative_prompt(benchmark),
        input_images=[[open_image(path) for path in prompt.input_images] for prompt in batch],
        height=benchmark.height,
        width=benchmark.width,
        num_inference_steps=benchmark.num_inference_steps,
        text_guidance_scale=benchmark.text_guidance_scale,
        image_guidance_scale=benchmark.image_guidance_scale,
        cfg_range=benchmark.cfg_range,
        max_pixels=benchmark.max_pixels,
        max_input_image_side_length=benchmark.max_side_length,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],  # on the CPU: equal on every device
    )
    return list(result.images)

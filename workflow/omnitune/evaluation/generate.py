"""Generate a benchmark's images with given weights, in parts that jobs can share, and the held-out losses beside them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from omnitune.config import Benchmark
from omnitune.console import Progress
from omnitune.conversion.export import CONVERSION_FILE, DTYPES, portable
from omnitune.evaluation.benchmark import (
    Prompt,
    negative_prompt,
    open_image,
    part_of,
    prompt_seed,
    protocol_fingerprint,
    read_prompts,
)
from omnitune.evaluation.loss import heldout_losses, loss_times
from omnitune.files import atomic_path, json_line, sha256_of, write_text
from omnitune.models import (
    OmniGen2DPMSolverScheduler,
    OmniGen2FlowMatchScheduler,
    OmniGen2Pipeline,
    OmniGen2Transformer2DModel,
)
from omnitune.models.components import MANIFEST

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
    for name, value, known in (("dtype", dtype, list(DTYPES)), ("scheduler", scheduler, list(SCHEDULERS))):
        if value not in known:
            raise ValueError(f"{name}: {value!r} is not allowed: needs one of {', '.join(known)}.")
    if threads:
        torch.set_num_threads(threads)
    components: dict[str, Any] = {}
    if transformer is not None:
        model = OmniGen2Transformer2DModel.from_pretrained(transformer, torch_dtype=DTYPES[dtype])
        components["transformer"] = model
    pipeline = OmniGen2Pipeline.from_pretrained(base, torch_dtype=DTYPES[dtype], **components)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    if lora is not None:
        pipeline.load_lora_weights(lora)
    pipeline.transformer.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def describe_weights(base: Path | str, transformer: Path | None = None, lora: Path | None = None) -> dict[str, Any]:
    """Which weights sample, for provenance: names, one sha256 over the transformer's (and the adapter's) content, and one
    over the pipeline's, VAE and text encoder included, where its folder has a manifest."""
    manifest = Path(base) / MANIFEST
    folders = [transformer or Path(base) / "transformer", *([lora] if lora else [])]
    return {
        "base": portable(Path(base)),
        "transformer": portable(transformer) if transformer else None,
        "lora": portable(lora) if lora else None,
        "sha256": hashlib.sha256("".join(map(_folder_hash, folders)).encode()).hexdigest(),
        "pipeline_sha256": sha256_of(manifest) if manifest.is_file() else None,
    }


def _folder_hash(folder: Path) -> str:
    """Of a conversion: that of conversion.json, which holds the hashes of its files. Otherwise over the weight files."""
    manifest = folder / CONVERSION_FILE
    if manifest.is_file():
        return sha256_of(manifest)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds neither {CONVERSION_FILE} nor *.safetensors: name a folder with weights.")
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()


@dataclass(frozen=True)
class EvaluatedWeights:
    """Which weights to sample with: a base pipeline, another transformer in its place, an adapter on top."""

    base: Path
    transformer: Path | None
    lora: Path | None


def evaluated_weights(base: Path, start: Path, tuned: Path | None) -> EvaluatedWeights:
    """The weights of a checkpoint, or those that an experiment started from.

    Args:
        base: the base pipeline's folder.
        start: the transformer that the experiment started from.
        tuned: the converted checkpoint, transformer/ or transformer_lora/, or its average; None for the start itself.
    """
    own = None if start == base / "transformer" else start
    if tuned is None:
        return EvaluatedWeights(base, own, None)
    if tuned.name.startswith("transformer_lora"):
        return EvaluatedWeights(base, own, tuned)
    return EvaluatedWeights(base, tuned, None)


def generate_part(
    benchmark: Benchmark, weights: EvaluatedWeights, output: Path, *, part: int, threads: int, name: str
) -> Path:
    """Loads the weights and generates one part of a benchmark's images, see `generate`."""
    prompts = read_prompts(benchmark, Path())
    where = (weights.base, weights.transformer, weights.lora)
    pipeline = load_pipeline(*where, dtype=benchmark.dtype, scheduler=benchmark.scheduler, threads=threads)
    return generate(benchmark, prompts, pipeline, output, weights=describe_weights(*where), part=part, name=name)


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

    A prompt's image depends on its key, the protocol and the weights alone, not on batch size, parts or order (but for the
    rounding of batched matrix products). Prompts that an interrupted run of the same protocol and weights has finished are kept.

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
    ledger = job.output / "parts" / f".{part}.unfinished.jsonl"
    rows = _finished(job, ledger)
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
    return final


def _finished(job: _Job, ledger: Path) -> dict[str, dict[str, Any]]:
    """Rows that a killed run has left and that hold: same protocol, same weights, image as written."""
    rows: dict[str, dict[str, Any]] = {}
    for line in ledger.read_text(encoding="utf-8").splitlines() if ledger.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that the kill has cut
            continue
        image = job.output / row["image"]
        same = row["protocol"] == job.protocol and row["weights"] == job.weights
        if same and image.is_file() and sha256_of(image) == row["sha256"]:
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

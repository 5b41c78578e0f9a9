"""The files of a small made-up run, and its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image, ImageDraw

from omnitune.config import Benchmark
from omnitune.evaluation.prompts import Prompt, protocol_fingerprint
from omnitune.io.files import sealed, sha256_of
from omnitune.report.build import BenchmarkEntry, build_report

ATTACK = "<script>document.title = 'owned'</script> & \"quotes\""
WEIGHTS = {"base": "resources/pretrained/made_up", "transformer": None, "lora": None, "sha256": "ab" * 32}
COLOURS = ("crimson", "seagreen", "royalblue", "goldenrod")


def save_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(path: Path, colour: str, size: int = 64, place: float = 0.3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (size, size), "lightgrey")
    left = place * size
    ImageDraw.Draw(image).ellipse((left, left, left + size * 0.4, left + size * 0.4), fill=colour)
    image.save(path)
    return path


def write_training(experiment: Path, steps: int = 120) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(1, steps + 1):
        loss = float(0.4 + 1.6 * np.exp(-step / 30) + rng.normal(0, 0.08))
        bins = [None if rng.random() < 0.2 else loss * (0.6 + 0.08 * b) for b in range(10)]
        row = {"step": step, "loss": loss, "grad_norm": loss * 0.7, "learning_rate": 1e-4 * min(1, step / 20)}
        rows.append({**row, "samples_per_second": 41.3, "loss_by_timestep": bins})
    save_rows(experiment / "logs/metrics.jsonl", rows)
    mixture = [
        {"source": "edit", "asked": 0.4, "realised": 0.4001, "samples": 4801},
        {"source": "t2i", "asked": 0.6, "realised": 0.5999, "samples": 7199},
    ]
    seen = {"worst_window": 0.3987, "passes": 9.602, "pixels": 5_034_000_000, "tokens": 21_500_000}
    mixture = [{**source, **seen} for source in mixture]
    train = {"experiment": "demo", "final_step": steps, "strategy": "fsdp", "world_size": 2, "parameters": 1_234_567}
    save_json(experiment / "train.json", {**train, "trainable_parameters": 1_234_567, "mixture": mixture})


def write_prepared(prepared: Path, rejected: int = 3) -> None:
    totals = {"rows": 1203, "accepted": 1203 - rejected, "rejected": rejected, "depth": "full", "images": 1700}
    totals |= {"image_pixels": 1_234_567_890, "image_bytes": 45_678_901, "text_tokens": None}
    counts = {
        "task_types": {"t2i": 700, "edit": 500},
        "reasons": {"missing": rejected},
        "output_sizes": {"to 256x256": 0, "to 512x512": 1100, "to 768x768": 0, "to 1024x1024": 100, "above": 0},
        "output_aspects": {"below 1:2": 2, "4:5 to 5:4": 1198},
        "text_lengths": {"to 16": 0, "to 32": 1200},
        "scripts": {"Latin": 1100, "Cjk": 100},
        "formats": {"JPEG": 1200},
        "notes": {f"unknown key 'k{k}' is ignored": 30 - k for k in range(25)},
    }
    sources = {
        "edit": {"rows": 503, "accepted": 503 - rejected, "rejected": rejected, "reasons": {"missing": rejected}},
        "t2i": {"rows": 700, "accepted": 700, "rejected": 0, "reasons": {}},
    }
    summary = {**totals, "duplicate_output_images": 7, **counts, "sources": sources}
    save_json(prepared / "validation/summary.json", summary)
    rows = [
        {"file": "data/edit.jsonl", "line": i, "reason": "missing", "message": f"{ATTACK} no such file {i}", "row": {}}
        for i in range(rejected)
    ]
    save_rows(prepared / "validation/rejected.jsonl", rows)
    write_index(prepared / "shards/index.parquet")


def write_index(path: Path) -> None:
    """Twelve samples of two sources: three tars of four."""
    rows = [
        {"source": source, "tar": f"{source}-{shard:05d}.tar", "tar_bytes": 4_000_000, "output_tokens": 1000}
        for source, shard in (("edit", 0), ("edit", 1), ("t2i", 0))
        for _ in range(4)
    ]
    rows = [{**row, "input_tokens": 500 if row["source"] == "edit" else 0, "text_tokens": None} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_encoded(folder: Path) -> None:
    fingerprint = json.dumps({"encoded_precision": "bf16"})
    for group, sizes in enumerate(([100_000, 200_000], [300_000])):
        table = pa.table({"size": sizes}).replace_schema_metadata({"fingerprint": fingerprint})
        path = folder / f"groups/edit-{group:04d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def write_evaluation(
    experiment: Path,
    entry: BenchmarkEntry,
    step: int | str,
    quality: float,
    checked: bool = True,
    image: Path | None = None,
    **changes: Any,
) -> None:
    """An evaluation of weights that are not here; all images are `image`, if given; `changes` are of its scores."""
    folder = experiment / "evaluation" / str(step) / entry.name
    generations, per_prompt = [], []
    for number, prompt in enumerate(entry.prompts):
        good = number / len(entry.prompts) < quality
        path = folder / f"images/{prompt.key}.png"
        if image:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(image)
        else:
            draw(path, COLOURS[number % 4] if good else "black")
        drawn = {"image": f"images/{prompt.key}.png", "sha256": sha256_of(path)}
        generations.append({"key": prompt.key, "instruction": prompt.instruction, **drawn})
        row: dict[str, Any] = {"key": prompt.key, "task_type": prompt.task_type}
        if prompt.target:
            row |= {"psnr": 10 + 20 * quality, "ssim": quality, "loss": 2 - quality}
        if checked:
            row |= {f"check_{name}": float(good) for name in ("color", "position", "background", "passed")}
        per_prompt.append(row)
    measures = [key for key in per_prompt[0] if key not in {"key", "task_type"}]
    means = {measure: float(np.mean([row[measure] for row in per_prompt])) for measure in measures}
    by_time = [[(i + 0.5) / 4, (2 - quality) * (1 + i / 4)] for i in range(4)] if "loss" in means else []
    save_rows(folder / "generations.jsonl", generations)
    protocol = protocol_fingerprint(entry.benchmark, entry.prompts)
    scores = {"benchmark": entry.name, "step": step, "protocol": protocol, "weights": WEIGHTS, "means": means}
    scores |= {"loss_by_time": by_time, "per_prompt": per_prompt}
    scores |= {"generations_sha256": sha256_of(folder / "generations.jsonl"), **changes}
    save_json(folder / "scores.json", sealed(scores))


def write_options(experiment: Path, encode: bool = False, **train: Any) -> None:
    experiment.mkdir(parents=True, exist_ok=True)
    options = {
        "name": "demo",
        "data": {"data_path": "config/data/demo.yml", "encode": encode},
        "model": {"pretrained_model_path": "demo"},
        "train": {"max_train_steps": 120, **train},
        "val": {"evaluate_checkpoints": "last"},
    }
    (experiment / "options.yml").write_text(yaml.safe_dump(options))


def write_prompts(folder: Path, count: int, targets: bool = True) -> list[Prompt]:
    prompts = []
    for number in range(count):
        image = draw(folder / f"in{number}.png", "grey", place=0.1)
        target = draw(folder / f"out{number}.png", COLOURS[number % 4]) if targets else None
        text = ATTACK if number == 0 else f"make the circle {COLOURS[number % 4]} and leave everything else as it is."
        inputs = (image,) if number % 2 else ()
        task = "edit" if number % 2 else "t2i"
        prompts.append(Prompt(f"{task}-{number:03d}", task, text, inputs, target))
    return prompts


def write_run(root: Path, count: int = 16) -> Path:
    """A whole run below `root`, and its report; returns the path of the page."""
    experiment, prepared = root / "experiments/demo", root / "prepared/demo"
    write_options(experiment)
    write_training(experiment)
    write_prepared(prepared)
    scenes = BenchmarkEntry(
        "scenes", Benchmark(prompts="p.jsonl", check="demo_scene"), write_prompts(root / "p", count)
    )
    plain = BenchmarkEntry("plain", Benchmark(prompts="q.jsonl"), write_prompts(root / "q", 8))
    for step, quality in ((0, 0.1), (120, 0.9)):
        write_evaluation(experiment, scenes, step, quality)
        write_evaluation(experiment, plain, step, 1 - quality, checked=False)
    weights = experiment / "checkpoint-120/transformer"
    save_json(weights / "config.json", {"hidden_size": 48})
    facts = {"sha256": sha256_of(weights / "config.json"), "bytes": 1234}
    save_json(weights / "conversion.json", {"files": {"config.json": facts}})
    return build_report(experiment, prepared, [scenes, plain], experiment / "report/index.html")

"""Measure generated images against targets and known scenes, and sum up a benchmark."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from omnitune.config import Benchmark
from omnitune.config.choices import MEASURES
from omnitune.evaluation.judges.judgements import judged_measures, read_judgements, summed_up
from omnitune.evaluation.measures.encoders import load_models
from omnitune.evaluation.measures.measure import Case, measure
from omnitune.evaluation.measures.sets import measure_sets
from omnitune.evaluation.prompts import Prompt, open_image, protocol_fingerprint
from omnitune.evaluation.results import require_drawn
from omnitune.io.files import is_whole, json_line, lock_folder, sealed, sha256_of, write_json, write_text
from omnitune.io.kept import Drawn, read_kept_lines
from omnitune.paths import GENERATIONS_FILE, SCORES_FILE, EvaluatedStep


def score(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    parts: Sequence[Path],
    output: Path,
    *,
    name: str,
    step: EvaluatedStep,
    weights: dict[str, Any],
    judgements: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Scores all images of a benchmark; writes generations.jsonl and, last, scores.json. Equal inputs give equal bytes.

    Args:
        benchmark: the protocol.
        prompts: all of the benchmark's.
        parts: the parts/{part}.jsonl files of all parts.
        output: evaluation/{step}/{benchmark}, where images/ is.
        name: of the benchmark.
        step: whose weights these are.
        weights: from `describe_weights`: what the images must have been drawn with.
        judgements: by the name of a judge what `judge_images` has written, for each of the benchmark's judges.

    Returns:
        The content of scores.json: benchmark, step, ema, baseline (where it is one), protocol, weights, what `_scores`
        gives, the hash of generations.jsonl, and a seal over all of it.

    Raises:
        ValueError: for prompts without generation, missing or changed images, or parts of another protocol or other
            weights.
    """
    protocol = protocol_fingerprint(benchmark, prompts)
    rows = read_parts(parts, prompts, protocol, weights)
    for row in rows:
        require_drawn(output, row)
    baseline = {"baseline": step.baseline} if step.baseline else {}
    whose = {"benchmark": name, "step": step.number, "ema": step.ema, **baseline}
    made = {"protocol": protocol, "weights": weights}
    scores = {**whose, **made, **_scores(benchmark, prompts, rows, output, judgements or {})}
    generations = output / GENERATIONS_FILE
    with lock_folder(output):
        write_text(generations, "".join(map(json_line, rows)))
        content = sealed({**scores, "generations_sha256": sha256_of(generations)})
        write_json(output / SCORES_FILE, content)
    return content


def _scores(
    benchmark: Benchmark,
    prompts: Sequence[Prompt],
    rows: Sequence[dict[str, Any]],
    output: Path,
    judgements: Mapping[str, Path],
) -> dict[str, Any]:
    """What images reach.

    prompts (number), missing (images that failed, which no mean counts), means over images, loss_by_time ([time, loss]
    pairs), judges (of each what `summed_up` says), sets (figures of all images together, from `measure_sets`),
    not_measured (by measure why: its model is not there, or there are too few images), and per_prompt. A measure that
    no prompt can have is left out.
    """
    judged = [(judge, read_judgements(judge, judgements[judge.name], rows)) for judge in benchmark.judges]
    models, absent = load_models(benchmark)
    measured = partial(_measured, benchmark, output, models)
    per_prompt = [measured(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]
    for judge, lines in judged:
        for row, line in zip(per_prompt, lines, strict=True):
            row.update(judged_measures(judge, line))
    drawn = [
        (output / row["image"], prompt.target)
        for prompt, row in zip(prompts, rows, strict=True)
        if row["image"] and prompt.target and not prompt.draw
    ]
    sets, too_few = measure_sets(benchmark.measured, models, drawn)
    return {
        "prompts": len(prompts),
        "missing": sum("failed" in row for row in per_prompt),
        "means": _means(per_prompt),
        "loss_by_time": _loss_by_time(rows),
        "judges": {judge.name: summed_up(judge, lines) for judge, lines in judged},
        "sets": sets,
        "not_measured": {**absent, **too_few},
        "per_prompt": per_prompt,
    }


def read_parts(
    parts: Sequence[Path], prompts: Sequence[Prompt], protocol: str, weights: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of all parts in the order of the prompts; ValueError for what is missing, or of something else."""
    rows: dict[str, dict[str, Any]] = {}
    for path in parts:
        fix = f"Draw the images again: snakemake --cores 2 --force {path}"
        for number, row in enumerate(read_kept_lines(Path(path), Drawn, fix), start=1):
            if row["protocol"] != protocol:
                raise ValueError(
                    f"{path}:{number}: made under another protocol ({row['protocol'][:12]}, not {protocol[:12]}): the "
                    f"benchmark or its images changed since. {fix}"
                )
            if row["weights"] != weights:
                raise ValueError(f"{path}:{number}: made with other weights than those that are there now. {fix}")
            if not is_whole(row):
                raise ValueError(f"{path}:{number}: was changed after it was written. {fix}")
            if row["key"] in rows:
                raise ValueError(f"{path}:{number}: a second image for {row['key']!r}.")
            rows[row["key"]] = row
    lost = [prompt.key for prompt in prompts if prompt.key not in rows]
    if lost:
        raise ValueError(
            f"{len(lost)} of {len(prompts)} prompts have no image: {', '.join(lost[:10])}. Generate all parts."
        )
    return [rows[prompt.key] for prompt in prompts]


def _measured(
    benchmark: Benchmark, output: Path, models: dict[str, Any], prompt: Prompt, row: dict[str, Any]
) -> dict[str, Any]:
    known = {"key": prompt.key, "task_type": prompt.task_type, "category": prompt.category}
    if row["image"] is None:
        return {**known, "failed": row["failed"]}
    target = open_image(prompt.target) if prompt.target else None
    case = Case(prompt, open_image(output / row["image"]), target, row["losses"] or (), benchmark.check, models)
    found = measure(case, [entry.name for entry in benchmark.measured if not MEASURES[entry.name].of_set])
    return {**known, **found}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of each measure over the images that have it."""
    means = {}
    for name in MEASURES.among(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        means[name] = round(fmean(values), 6)
    return means


def _loss_by_time(rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    losses = [row for row in rows if row["losses"]]
    if not losses:
        return []
    columns = zip(*(row["losses"] for row in losses), strict=True)
    return [[time, round(fmean(column), 6)] for time, column in zip(losses[0]["loss_times"], columns, strict=True)]

"""Build the report of an experiment: one HTML file that needs nothing else, from files that the stages have left."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from omnitune.config.choices import MEASURES
from omnitune.evaluation.prompts import Prompt
from omnitune.io.files import lock_folder, write_text
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import (
    SHOWN_REJECTED,
    BenchmarkEntry,
    Evaluation,
    Run,
    collect,
    compare,
    judge,
    show,
    show_change,
    verdict,
)
from omnitune.report.data import data_context, short, thousands
from omnitune.report.images import image_entry
from omnitune.report.plots import heldout_plot, training_plots
from omnitune.report.tables import write_tables
from omnitune.report.training import training_context

SHOWN_EXAMPLES = 12
PACKAGES = ("omnitune", "torch", "diffusers", "transformers", "accelerate", "peft", "torchmetrics", "snakemake")


def build_report(
    experiment: Path,
    prepared: Path,
    benchmarks: Sequence[BenchmarkEntry],
    output: Path,
    *,
    evaluations: Mapping[EvaluatedStep, Path] | None = None,
) -> Path:
    """Writes the report as one self-contained HTML file, tables beside it; equal inputs give equal bytes.

    Args:
        experiment: experiments/{experiment}.
        prepared: prepared/{dataset}.
        benchmarks: what it was evaluated on; may be empty.
        output: the .html file to write.
        evaluations: folder of each evaluated step's scores; None takes experiment/evaluation/{step} of the base (0) and
            of the steps of the experiment's options.yml, averages included.

    Returns:
        output.

    Raises:
        ValueError: where options.yml or the scores of a step are missing.
    """
    experiment, output = Path(experiment), Path(output)
    run = collect(experiment, Path(prepared), benchmarks, evaluations)
    page = page_environment().get_template("report.html.j2").render(**_context(run))
    with lock_folder(output.parent):
        write_tables(run, output.parent)
        write_text(output, page)
    return output


def page_environment() -> Environment:
    """For the templates of pages."""
    environment = Environment(
        loader=PackageLoader("omnitune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"show": show, "show_change": show_change}
    environment.filters |= {"thousands": thousands, "short": short}
    return environment


def _context(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "verdicts": [verdict(evaluation) for evaluation in run.evaluations],
        "facts": _facts(run),
        "packages": _packages(),
        "data": data_context(run.summary, run.shards, run.encoded, run.options["data"]),
        "rejected": run.rejected,
        "more_rejected": max(0, run.summary.get("rejected", 0) - SHOWN_REJECTED),
        "mixture": run.train.get("mixture", []),
        "training": training_context(run.train, run.metrics, run.samples),
        "plots": [{**plot, "svg": Markup(plot["svg"])} for plot in training_plots(run.metrics)],
        "evaluations": [_evaluation(evaluation) for evaluation in run.evaluations],
        "options": yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True),
        "conversions": run.conversions,
        "checked": run.checked,
        "identity": yaml.safe_dump(run.train["identity"], sort_keys=False) if "identity" in run.train else "",
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    train, model, done = run.options["train"], run.options["model"], run.train
    facts = [
        ("Method", _method(train)),
        ("Started from", model["pretrained_model_path"]),
        ("Revision", model["pretrained_revision"]),
        ("Steps", done.get("final_step", train["max_train_steps"])),
        ("Global batch size", train["global_batch_size"]),
        ("Learning rate", f"{train['learning_rate']:g}"),
        ("Schedule", train["lr_scheduler"]),
        ("Averaging of weights", f"EMA, decay {train['ema_decay']:g}" if train["ema_decay"] else None),
        ("Mixed precision", train["mixed_precision"]),
        ("Seed", run.options["seed"]),
        ("Strategy", done.get("strategy")),
        ("Processes", done.get("world_size")),
        ("Parameters", _count(done.get("parameters"))),
        ("Trained parameters", _count(done.get("trainable_parameters"))),
        ("Samples per second", _speed(run.metrics)),
        ("Waiting for unequal work", f"{100 * done['waste']:.1f} % of a step" if "waste" in done else None),
    ]
    return [(label, str(value)) for label, value in facts if value is not None]


def _method(train: Mapping[str, Any]) -> str:
    if train["parameter_groups"]:
        return f"parameters {', '.join(group['pattern'] for group in train['parameter_groups'])}"
    if not train["lora_ft"]:
        return "all parameters"
    kind = "DoRA" if train["lora_use_dora"] else "LoRA"
    scale = ", rank-stabilised" if train["lora_use_rslora"] else ""
    return f"{kind}, rank {train['lora_rank']}, alpha {train['lora_alpha'] or train['lora_rank']}{scale}"


def _count(value: int | None) -> str | None:
    if value is None:
        return None
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.2f} {name}"
    return str(value)


def _speed(metrics: Sequence[dict[str, Any]]) -> str | None:
    """The median, which the first steps (compilation, cold caches) do not move."""
    rates = sorted(row["samples_per_second"] for row in metrics if row.get("samples_per_second"))
    return f"{rates[len(rates) // 2]:.1f} (median)" if rates else None


def _packages() -> list[tuple[str, str]]:
    """Versions in the environment that builds the report, which is not that of training where rules have their own."""
    found = []
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    entry = evaluation.entry
    curves = {step.label: evaluation.scores[step]["loss_by_time"] for step in evaluation.shown}
    shown, rest = choose_examples(entry.prompts)
    return {
        "name": entry.name,
        "benchmark": entry.benchmark,
        "count": len(entry.prompts),
        "steps": [step.label for step in evaluation.steps],
        "last": evaluation.last.label,
        "rows": compare(evaluation),
        "tasks": _task_rows(evaluation),
        "plot": Markup(heldout_plot(entry.name, curves)),
        "examples": [_example(evaluation, prompt) for prompt in shown],
        "rest": [_example(evaluation, prompt) for prompt in rest],
        "protocol": evaluation.scores[BASE]["protocol"],
        "weights": [(step.label, evaluation.scores[step]["weights"]) for step in evaluation.steps],
    }


def choose_examples(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(shown, rest), by key alone and so by no result: the first of each task type in turn, up to SHOWN_EXAMPLES."""
    ordered = sorted(prompts, key=lambda prompt: prompt.key)
    tasks = list(dict.fromkeys(prompt.task_type for prompt in ordered))
    columns = [[prompt for prompt in ordered if prompt.task_type == task] for task in tasks]
    turns = [prompt for turn in zip_longest(*columns) for prompt in turn if prompt is not None]
    keys = {prompt.key for prompt in turns[:SHOWN_EXAMPLES]}
    return [p for p in ordered if p.key in keys], [p for p in ordered if p.key not in keys]


def _task_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Base, last step and its average, or None, for each task type; none where there is a single type."""
    first, last = (evaluation.scores[step]["by_task_type"] for step in (BASE, evaluation.last))
    averaged = evaluation.scores[evaluation.averaged]["by_task_type"] if evaluation.averaged else {}
    if len(last) < 2:
        return []
    measures = [row["measure"] for row in compare(evaluation)]
    columns = (first, last, averaged)
    return [
        {"task": task, "cells": [(name, *(column.get(task, {}).get(name) for column in columns)) for name in measures]}
        for task in last
    ]


def _example(evaluation: Evaluation, prompt: Prompt) -> dict[str, Any]:
    """The images of one prompt side by side, with what was measured of each."""
    images = []
    for number, path in enumerate(prompt.input_images, start=1):
        caption = f"input {number}" if len(prompt.input_images) > 1 else "input"
        images.append({**image_entry(path, caption, f"{caption} of {prompt.key}"), "result": None})
    for step in evaluation.shown:
        caption = step.label
        path = evaluation.folders[step] / evaluation.generations[step][prompt.key]["image"]
        alt = f"image of {caption} for {prompt.key}"
        images.append({**image_entry(path, caption, alt), "result": _result(evaluation, step, prompt.key)})
    if prompt.target:
        images.append({**image_entry(prompt.target, "target", f"target of {prompt.key}"), "result": None})
    return {"key": prompt.key, "task": prompt.task_type, "instruction": prompt.instruction, "images": images}


def _result(evaluation: Evaluation, step: EvaluatedStep, key: str) -> dict[str, Any]:
    """What is written below an image: the check, or else its first measure."""
    row = next(row for row in evaluation.scores[step]["per_prompt"] if row["key"] == key)
    if "check_passed" in row:
        checked = [name for name in MEASURES if MEASURES[name].share and name in row and name != "check_passed"]
        wrong = [MEASURES[name].label.removesuffix(" right") for name in checked if not row[name]]
        passed = bool(row["check_passed"])
        return {"word": "better" if passed else "worse", "text": "right" if passed else f"wrong: {', '.join(wrong)}"}
    measure = next((name for name in MEASURES if name in row), None)
    if measure is None:
        return {"word": "equal", "text": ""}
    base = next(entry for entry in evaluation.scores[BASE]["per_prompt"] if entry["key"] == key)
    word = "equal" if step == BASE else judge(measure, row[measure] - base[measure])
    return {"word": word, "text": f"{MEASURES[measure].label} {show(measure, row[measure])}"}

"""Build the report of an experiment: one HTML file that needs nothing else, from files that the stages have left."""

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from omnitune.config.choices import MEASURES
from omnitune.io.files import lock_folder, write_text
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import SHOWN_REJECTED, BenchmarkEntry, Evaluation, Run, collect
from omnitune.report.commands import commands, first_remade
from omnitune.report.data import data_context, short, thousands
from omnitune.report.examples import count_images, examples
from omnitune.report.images import Thumbnails
from omnitune.report.plots import heldout_plot, training_plots
from omnitune.report.remarks import remarks
from omnitune.report.score_table import table_rows
from omnitune.report.scores import Score, measures_of, primary_of, score_lines
from omnitune.report.tables import write_tables
from omnitune.report.training import count_samples, ran, restarts, training_context
from omnitune.report.verdict import answer, forgetting, step_to_take, taking, verdict

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
    lines = [line for evaluation in run.evaluations for line in score_lines(evaluation)]
    page = page_environment().get_template("report.html.j2").render(**_context(run, lines, output.parent))
    with lock_folder(output.parent):
        write_tables(run, lines, output.parent)
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
    environment.filters |= {"thousands": thousands, "short": short}
    script = resources.files("omnitune.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}  # our own file, not data
    return environment


def _context(run: Run, lines: Sequence[Score], folder: Path) -> dict[str, Any]:
    found = run.evaluations
    by_name = {e.entry.name: [line for line in lines if line.benchmark == e.entry.name] for e in found}
    forgotten = forgetting(found, lines, run.summary.get("task_types", {}))
    take = step_to_take(found)
    thumbnails = Thumbnails(folder, sum(map(count_images, found)) + count_samples(run.samples))
    return {
        "name": run.name,
        "answer": answer(found, lines),
        "ran": ran(run.starts, run.metrics),
        "verdicts": [verdict(evaluation, by_name[evaluation.entry.name]) for evaluation in found],
        "take": taking(take, found, lines) if take else "",
        "commands": commands(found, take),
        "forgotten": [{**row, "benchmark": line.benchmark} for line in forgotten for row in table_rows([line], None)],
        "facts": _facts(run),
        "packages": _packages(),
        "data": data_context(run.summary, run.shards, run.encoded, run.options["data"]),
        "rejected": run.rejected,
        "more_rejected": max(0, run.summary.get("rejected", 0) - SHOWN_REJECTED),
        "mixture": run.train.get("mixture", []),
        "training": training_context(run.train, run.metrics, run.samples, thumbnails),
        "plots": [{**plot, "svg": Markup(plot["svg"])} for plot in training_plots(run.metrics, restarts(run.starts))],
        "evaluations": [_evaluation(evaluation, by_name[evaluation.entry.name], thumbnails) for evaluation in found],
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


def _evaluation(evaluation: Evaluation, lines: Sequence[Score], thumbnails: Thumbnails) -> dict[str, Any]:
    entry = evaluation.entry
    curves = {step.label: evaluation.scores[step]["loss_by_time"] for step in evaluation.shown}
    primary = primary_of(evaluation)
    measures = sorted(measures_of(evaluation), key=lambda name: name != primary)
    return {
        "name": entry.name,
        "benchmark": entry.benchmark,
        "count": len(entry.prompts),
        "primary": MEASURES[primary].label if primary else None,
        "rows": table_rows([line for line in lines if line.benchmark == entry.name], primary),
        "missing": [(step.label, count) for step in evaluation.steps if (count := evaluation.missing(step))],
        "plot": Markup(heldout_plot(entry.name, curves)),
        "measures": [(name, MEASURES[name].label) for name in measures],
        "examples": examples(evaluation, thumbnails),
        "remarks": remarks(evaluation),
        "protocol": evaluation.scores[BASE]["protocol"],
        "remake": first_remade(evaluation),
        "remade_row": evaluation.last.label,
        "drawn_together": entry.benchmark.batch_size > 1,
        "weights": [(step.label, evaluation.scores[step]["weights"]) for step in evaluation.steps],
    }

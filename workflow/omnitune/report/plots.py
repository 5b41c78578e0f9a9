"""Plots as inline SVG: no fonts, no dates, equal input gives equal bytes."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2257c4", "#d9730d", "#9aa4b5"
COLOURS = (BLUE, ORANGE, "#12743c", "#8a5a00", "#7a3db8", GREY)  # of curves beside each other
MAX_POINTS = 800  # of a curve; a longer one is averaged in groups
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text and takes the page's font
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b8c0cc",
    "axes.labelcolor": "#4a5568",
    "xtick.color": "#4a5568",
    "ytick.color": "#4a5568",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9edf3",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
}


def training_plots(metrics: Sequence[dict[str, Any]], restarts: Sequence[int] = ()) -> list[dict[str, str]]:
    """Losses, learning rate and gradient norm of logs/metrics.jsonl, where they are there: title, note, svg of each.

    Args:
        metrics: the rows.
        restarts: steps at which the training went on, which are marked.
    """
    marked = " Dotted: the training was stopped before and went on here." if restarts else ""
    loss_note = f"Grey: as it was; blue: smoothed.{marked}"
    plots = [
        _curve("loss", "Loss", metrics, "loss", restarts, smooth=True, note=loss_note),
        _heldout(metrics, restarts),
        _by_time(metrics),
        _curve("learning-rate", "Learning rate", metrics, "learning_rate", restarts),
        _curve("gradient-norm", "Gradient norm", metrics, "grad_norm", restarts, smooth=True, note="Before clipping."),
    ]
    return [plot for plot in plots if plot]


def heldout_plot(name: str, curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Held-out loss over time, the base's first, from [time, loss] pairs by label; "" where there is none."""
    if not all(curves.values()):
        return ""
    with mpl.rc_context(STYLE):
        figure, axes = _figure("time t (0: noise, 1: data)")
        for colour, (label, pairs) in zip((GREY, *COLOURS), curves.items(), strict=False):
            axes.plot(*zip(*pairs, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.set_ylim(bottom=0)
        axes.legend()
        return _svg(figure, f"heldout-{name}")


def compared_plots(curves: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """Losses of several trainings in one plot, from their rows of logs/metrics.jsonl by name, as `training_plots`."""
    loss = _over_each_other("compared-loss", "Loss", "Smoothed.", curves, "loss", smooth=True)
    heldout = _over_each_other("compared-heldout", "Held-out loss while training", "", curves, "val_loss")
    return [plot for plot in (loss, heldout) if plot]


def _over_each_other(
    name: str, title: str, note: str, curves: Mapping[str, Sequence[dict[str, Any]]], key: str, smooth: bool = False
) -> dict[str, str]:
    found = {label: _points(rows, key) for label, rows in curves.items()}
    if not any(len(values) for _, values in found.values()):
        return {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure("step")
        for number, (label, (steps, values)) in enumerate(found.items()):
            if not len(values):
                continue
            x, y = _thinned(steps, _smoothed(values) if smooth else values)
            axes.plot(
                x, y, color=COLOURS[number % len(COLOURS)], label=label, marker="" if smooth else "o", markersize=3
            )
        axes.set_ylim(bottom=0)
        axes.legend()
        return {"title": title, "note": note, "svg": _svg(figure, name)}


def _heldout(metrics: Sequence[dict[str, Any]], restarts: Sequence[int]) -> dict[str, str]:
    """Held-out loss while training, and that of each task type."""
    rows = [{**row, **(row.get("val_loss_by_task") or {}), "all": row.get("val_loss")} for row in metrics]
    tasks = sorted({task for row in metrics for task in row.get("val_loss_by_task") or {}})
    curves = {name: _points(rows, name) for name in ("all", *(tasks if len(tasks) > 1 else ()))}
    if not len(curves["all"][0]):
        return {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure("step", restarts)
        for number, (name, (steps, values)) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            width = 1.6 if name == "all" else 0.8
            axes.plot(steps, values, color=colour, linewidth=width, marker="o", markersize=3, label=name)
        axes.set_ylim(bottom=0)
        if len(curves) > 1:
            axes.legend()
        note = "Of the same samples at the same times with the same noise."
        return {"title": "Held-out loss while training", "note": note, "svg": _svg(figure, "validation")}


def _points(rows: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the rows that have a number for the key; one that was skipped may have none."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return np.array([step for step, _ in found]), np.array([value for _, value in found], dtype=float)


def _curve(
    name: str,
    title: str,
    metrics: Sequence[dict[str, Any]],
    key: str,
    restarts: Sequence[int],
    smooth: bool = False,
    note: str = "",
) -> dict[str, str]:
    steps, values = _points(metrics, key)
    if not len(values):
        return {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure("step", restarts)
        x, y = _thinned(steps, values)
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, y, color=GREY if smooth else BLUE, linewidth=0.8 if smooth else 1.6, marker=marker)
        if smooth:
            axes.plot(x, _thinned(steps, _smoothed(values))[1], color=BLUE, marker=marker)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if values.min() >= 0:
            axes.set_ylim(bottom=0)
        return {"title": title, "note": note, "svg": _svg(figure, name)}


def _by_time(metrics: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Loss by tenth of the time at the start and at the end of training, each over a fifth of the steps."""
    rows = [[_number(value) for value in row["loss_by_timestep"]] for row in metrics if row.get("loss_by_timestep")]
    if not rows:
        return {}
    values = np.array(rows)
    count = max(1, len(values) // 5)
    edges = np.linspace(0, 1, values.shape[1] + 1)
    with mpl.rc_context(STYLE):
        figure, axes = _figure("time t (0: noise, 1: data)")
        for part, colour, label in ((values[:count], GREY, "first fifth"), (values[-count:], BLUE, "last fifth")):
            seen = ~np.isnan(part)
            sums, counts = np.where(seen, part, 0).sum(0), seen.sum(0)
            means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
            axes.stairs(means, edges, baseline=None, color=colour, linewidth=1.8, label=label)
        axes.set_ylim(bottom=0)
        axes.legend()
        note = "Mean in each tenth of the time, over the first and the last fifth of the steps."
        return {"title": "Loss by time", "note": note, "svg": _svg(figure, "loss-by-time")}


def _figure(xlabel: str, marks: Sequence[int] = ()) -> tuple[Figure, Axes]:
    """With dotted lines at some places of the axis."""
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    for name, axis in (("x-axis", axes.xaxis), ("y-axis", axes.yaxis)):
        axis.set_gid(name)
    for mark in marks:
        axes.axvline(mark, color=ORANGE, linewidth=0.9, linestyle=":")
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """With what the page's script zooms by: classes of the axes, and where they lie."""
    buffer = io.StringIO()
    # the salt makes ids differ between plots of one page and be equal between runs
    with mpl.rc_context({"svg.hashsalt": f"omnitune-{name}"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("<svg", f"<svg data-axes='{json.dumps(_places(figure))}'", 1)
    # groups are numbered alike in each plot, and an id may occur only once in a page
    return re.sub(r'<g id="[^"]*"', "<g", re.sub(r'<g id="([xy]-axis)"', r'<g class="\1"', text))


def _places(figure: Figure) -> list[list[float]]:
    """Of x and y where the axis begins and ends, in points from the picture's upper left, and the numbers there."""
    axes, (width, height) = figure.axes[0], figure.get_size_inches() * 72
    box = axes.get_position()
    places = [[box.x0 * width, box.x1 * width, *axes.get_xlim()]]
    places.append([(1 - box.y0) * height, (1 - box.y1) * height, *axes.get_ylim()])
    return [[float(f"{number:.9g}") for number in place] for place in places]


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential mean over about a twentieth of the curve; starts without bias."""
    span = max(1.0, len(values) / 20)
    return pd.Series(values).ewm(alpha=1 / span, ignore_na=True).mean().to_numpy()


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = -(-len(steps) // MAX_POINTS)
    if size == 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    counts = np.diff([*starts, len(steps)])
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts

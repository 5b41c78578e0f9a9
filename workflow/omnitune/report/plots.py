"""Plots as inline SVG: no fonts, no dates, equal input gives equal bytes."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2257c4", "#d9730d", "#9aa4b5"
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


def training_plots(metrics: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Loss, loss by time, learning rate and gradient norm of logs/metrics.jsonl: title, note and svg of each."""
    if not metrics:
        return []
    steps = np.array([row["step"] for row in metrics])
    plots = [
        _curve("loss", "Loss", steps, metrics, "loss", smooth=True, note="Grey: as it was; blue: smoothed."),
        _by_time(metrics),
        _curve("learning-rate", "Learning rate", steps, metrics, "learning_rate"),
        _curve("gradient-norm", "Gradient norm", steps, metrics, "grad_norm", smooth=True, note="Before clipping."),
    ]
    return [plot for plot in plots if plot]


def heldout_plot(name: str, base: Sequence[Sequence[float]], tuned: Sequence[Sequence[float]], step: int) -> str:
    """Held-out loss over time, base and tuned, from [time, loss] pairs; "" where there is none."""
    if not base or not tuned:
        return ""
    with mpl.rc_context(STYLE):
        figure, axes = _figure("time t (0: noise, 1: data)")
        axes.plot(*zip(*base, strict=True), color=GREY, marker="o", markersize=3, label="base")
        axes.plot(*zip(*tuned, strict=True), color=BLUE, marker="o", markersize=3, label=f"step {step}")
        axes.set_ylim(bottom=0)
        axes.legend()
        return _svg(figure, f"heldout-{name}")


def _curve(
    name: str,
    title: str,
    steps: np.ndarray,
    metrics: Sequence[dict[str, Any]],
    key: str,
    smooth: bool = False,
    note: str = "",
) -> dict[str, str]:
    values = np.array([_number(row.get(key)) for row in metrics])
    if np.isnan(values).all():
        return {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure("step")
        x, y = _thinned(steps, values)
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, y, color=GREY if smooth else BLUE, linewidth=0.8 if smooth else 1.6, marker=marker)
        if smooth:
            axes.plot(x, _thinned(steps, _smoothed(values))[1], color=BLUE, marker=marker)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        if np.nanmin(values) >= 0:
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


def _figure(xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(xlabel)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    # the salt makes ids differ between plots of one page and be equal between runs
    with mpl.rc_context({"svg.hashsalt": f"omnitune-{name}"}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue()
    # groups are numbered alike in each plot, and an id may occur only once in a page
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])


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

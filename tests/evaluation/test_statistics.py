"""Intervals by bootstrap: what they hold, what they are of where values are missing, and how rarely they are wrong."""

import math
import time

import numpy as np
import pytest
from scipy.stats import bootstrap

from omnitune.evaluation import statistics
from omnitune.evaluation.statistics import (
    NO_DIFFERENCE,
    RESAMPLES,
    Interval,
    compare,
    mean_intervals,
    prompts_needed,
)

pytestmark = pytest.mark.unit

NAN = math.nan


def asked(values: np.ndarray) -> np.ndarray:
    return np.ones(values.shape[-1], dtype=bool)


def test_intervals_are_those_of_the_paired_bootstrap() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=60)
    tuned = np.stack([base + rng.normal(0.3, 1, 60), base + 5])
    for values, found in zip(tuned, compare(tuned, base, asked(base), higher_is_better=True), strict=True):
        wanted = bootstrap(
            (values, base),
            lambda x, y, axis: np.mean(x, axis) - np.mean(y, axis),
            paired=True,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert (found.interval.low, found.interval.high) == pytest.approx(tuple(wanted), abs=1e-12), "the same draws"
        assert found.difference == pytest.approx(values.mean() - base.mean())
    assert mean_intervals(tuned) == mean_intervals(tuned)


def test_a_difference_is_named_only_where_the_interval_excludes_zero() -> None:
    base = np.zeros(60)
    rows = np.array([[1] * 55 + [0] * 5, [1, -1] * 30, [-1] * 30 + [0] * 30, [1, 1] + [0] * 58, [0] * 60], dtype=float)
    for higher, words in ((True, ("better", "worse")), (False, ("worse", "better"))):
        found = compare(rows, base, asked(base), higher)
        assert [c.verdict for c in found] == [words[0], NO_DIFFERENCE, words[1], NO_DIFFERENCE, NO_DIFFERENCE]
        assert all(c.interval.excludes_zero == (c.verdict != NO_DIFFERENCE) for c in found)
    assert found[4].interval == Interval(0, 0) and found[4].prompts_needed is None


def test_what_one_lacks_is_missing_and_no_score() -> None:
    base = np.array([0.0] * 10 + [NAN] * 2)
    rows = np.array([[1.0] * 8 + [NAN] * 2 + [1.0] * 2, [1.0] * 12, [NAN] * 12, [math.inf] * 12])
    measured = np.array([True] * 12)
    first, second, *none = compare(rows, base, measured, higher_is_better=True)
    assert (first.n, first.missing, first.mean, first.verdict) == (8, 4, 1.0, "better")
    assert (second.n, second.missing) == (10, 2)
    assert all((c.n, c.missing, c.verdict) == (0, 12, NO_DIFFERENCE) and math.isnan(c.mean) for c in none)
    measured[10:] = False  # prompts that nobody asks this of
    assert compare(rows[:1], base, measured, higher_is_better=True)[0].missing == 2


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_prompts_have_no_interval(count: int) -> None:
    [found] = compare(np.ones((1, count)), np.zeros(count), np.ones(count, dtype=bool), higher_is_better=True)
    assert (found.n, found.verdict, found.prompts_needed) == (count, NO_DIFFERENCE, None)
    assert math.isnan(found.interval.low) and math.isnan(found.mean_interval.high)


def test_a_choice_among_many_needs_more_prompts() -> None:
    """Six of one sign come by chance in 3 % of trials: enough for one comparison, and not for the best of twenty."""
    values, base, measured = np.ones((1, 6)), np.zeros(6), np.ones(6, dtype=bool)
    verdicts = [compare(values, base, measured, higher_is_better=True, among=n)[0].verdict for n in (1, 20)]
    assert verdicts == ["better", NO_DIFFERENCE]


def test_as_many_prompts_as_are_needed_show_half_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    number = prompts_needed(rng.normal(0.4, 1, 2000))
    assert number is not None and 160 < number < 240  # ((1.96 + 0.84) / 0.2)^2 = 196
    trials = np.array([rng.normal(0.2, 1, number) for _ in range(100)])
    shown = sum(interval.low > 0 for interval in mean_intervals(trials))
    assert 0.65 < shown / 100 < 0.92


def test_chance_is_taken_for_a_difference_in_one_trial_of_twenty() -> None:
    rng = np.random.default_rng(0)
    trials = rng.choice([-1.0, 0.0, 1.0], (300, 60), p=[0.05, 0.9, 0.05])
    wrong = sum(interval.excludes_zero for interval in mean_intervals(trials))
    assert wrong / 300 < 0.08


def test_how_much_is_held_together_changes_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(2, 60))
    found = mean_intervals(values)
    monkeypatch.setattr(statistics, "HELD", 7000)
    for one, other in zip(mean_intervals(values), found, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_a_choice_among_many_is_seldom_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 checkpoints that are all alike, one is shown better in a third of the trials; few are with their number."""
    rng = np.random.default_rng(0)
    rows, among = rng.normal(size=(100, 20, 60)), 20
    own = compare(rows[0], np.zeros(60), asked(rows), higher_is_better=True, among=among)
    assert [found.interval for found in own] == mean_intervals(rows[0], 1 - 0.05 / among)
    monkeypatch.setattr(statistics, "RESAMPLES", 2000)

    def wrong(confidence: float) -> float:
        found = mean_intervals(rows.reshape(-1, 60), confidence)
        return np.reshape([interval.low > 0 for interval in found], rows.shape[:2]).any(1).mean()

    assert wrong(0.95) > 0.3 and wrong(1 - 0.05 / among) < 0.1


def test_a_hundred_thousand_prompts_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    rng, started = np.random.default_rng(0), time.process_time()
    [found] = mean_intervals(rng.normal(size=(1, 100_000)))
    assert abs(found.low) < 0.02 > abs(found.high)
    assert time.process_time() - started < 1


@pytest.mark.slow
def test_500_prompts_of_four_rows_and_five_measures_take_seconds() -> None:
    rng, started = np.random.default_rng(0), time.process_time()
    for _ in range(5):
        compare(rng.normal(size=(4, 500)), rng.normal(size=500), np.ones(500, dtype=bool), higher_is_better=True)
    assert time.process_time() - started < 15

"""The plan: exact ratios, no row before all others of its pass, and a pure function of the step."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitune.data.plan import PERIOD, MixturePlan, period_counts, spread

pytestmark = pytest.mark.unit

ratio_lists = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


def drawn(plan: MixturePlan, first: int, last: int, size: int) -> list[tuple[int, int]]:
    return [sample for step in range(first, last) for sample in plan.batch(step, size)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_no_prefix_is_off_by_a_whole_slot(counts: list[int]) -> None:
    order = spread(np.asarray(counts))
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    seen = np.cumsum(order[:, None] == np.arange(len(counts)), axis=0)
    share = np.arange(1, len(order) + 1)[:, None] * np.asarray(counts) / len(order)
    assert np.abs(seen - share).max() < 1


@given(ratio_lists, st.integers(0, 10_000), st.integers(1, 300))
@settings(deadline=None, max_examples=15)
def test_a_window_of_100_batches_holds_the_ratios(ratios: list[float], first: int, size: int) -> None:
    plan = MixturePlan([1_000_003] * len(ratios), ratios, 0)
    counts = np.asarray(plan.counts(first, first + 100, size))
    total = 100 * size
    assert counts.sum() == total
    asked = np.asarray(ratios) / math.fsum(ratios) * total
    # Less than 2 samples for the two ends of the window, and less than 1/10,000 of it for the rounded ratio.
    assert (np.abs(counts - asked) < 2 + total / PERIOD).all()


@pytest.mark.parametrize("first", [0, 7, 12_345])
def test_ratios_from_one_hundredth_hold_within_one_percent(first: int) -> None:
    ratios = [0.01, 0.04, 0.25, 0.3, 0.4]
    counts = np.asarray(MixturePlan([50] * 5, ratios, 3).counts(first, first + 100, 256))
    assert np.abs(counts / (100 * 256) / ratios - 1).max() < 0.01


@pytest.mark.parametrize(
    ("ratios", "counts"),
    [
        ([0.5, 0.3, 0.2], [5, 3, 2]),
        ([1, 1, 1], [1, 1, 1]),
        ([2.0], [1]),
        ([0.1 * 3, 0.7], [3, 7]),
        ([1e-9, 1], [1, PERIOD - 1]),
        (
            [math.pi, math.e],
            [round(PERIOD * math.pi / (math.pi + math.e)), round(PERIOD * math.e / (math.pi + math.e))],
        ),
    ],
)
def test_simple_ratios_are_exact_and_small_ones_kept(ratios: list[float], counts: list[int]) -> None:
    assert period_counts(ratios).tolist() == counts


@given(st.lists(st.floats(1e-7, 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_periods_are_full_and_leave_no_source_out(ratios: list[float]) -> None:
    counts = period_counts(ratios)
    assert counts.min() >= 1
    assert counts.sum() <= PERIOD


def test_each_row_is_seen_once_per_pass() -> None:
    sizes = [7, 20, 1]
    plan = MixturePlan(sizes, [0.5, 0.3, 0.2], 5)
    rows: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(400):
        samples = plan.batch(step, 1)
        for source, row in samples:
            rows[source].append(row)
    for source, size in enumerate(sizes):
        passes = [rows[source][k : k + size] for k in range(0, len(rows[source]) - size + 1, size)]
        assert len(passes) > 5
        assert all(sorted(one) == list(range(size)) for one in passes)
    first, second = rows[1][:20], rows[1][20:40]
    assert first != second


def test_steps_are_pure_and_differ_by_seed() -> None:
    settings_ = ([40, 30, 9], [0.2, 0.5, 0.3])
    forward = MixturePlan(*settings_, 1)
    batches = [forward.batch(step, 16) for step in range(60)]
    fresh = MixturePlan(*settings_, 1)
    for step in (59, 3, 31, 0, 31):
        assert fresh.batch(step, 16) == batches[step]
    assert MixturePlan(*settings_, 2).batch(0, 16) != batches[0]


@given(ratio_lists, st.integers(0, 50), st.integers(0, 30), st.integers(1, 64))
@settings(deadline=None, max_examples=15)
def test_counts_are_those_of_the_batches(ratios: list[float], first: int, steps: int, size: int) -> None:
    plan = MixturePlan([11] * len(ratios), ratios, 0)
    seen = Counter(source for source, _ in drawn(plan, first, first + steps, size))
    assert plan.counts(first, first + steps, size) == [seen[source] for source in range(len(ratios))]


def test_sources_are_spread_over_the_slots_of_a_batch() -> None:
    plan = MixturePlan([1000, 1000], [1, 1], 0)
    at_first_slot = Counter(plan.batch(step, 8)[0][0] for step in range(400))
    assert abs(at_first_slot[0] - 200) < 60


@pytest.mark.parametrize(
    ("sizes", "ratios", "message"),
    [
        ([], [], "at least one"),
        ([1], [1, 2], "as many sizes"),
        ([0], [1], "has 0 rows"),
        ([1], [0], "must be above 0"),
        ([1], [float("nan")], "must be above 0"),
        ([1] * (PERIOD + 1), [1] * (PERIOD + 1), "at most 10000"),
    ],
)
def test_mistakes_are_named(sizes: list[int], ratios: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixturePlan(sizes, ratios, 0)
    with pytest.raises(ValueError, match="step -1"):
        MixturePlan([1], [1], 0).batch(-1, 1)

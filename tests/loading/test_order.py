"""The order: exact ratios, no row before all others of its pass, and a pure function of the step."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitune.loading.order import PERIOD, MixtureOrder, period_counts, spread_slots

pytestmark = pytest.mark.unit

ratio_lists = st.lists(st.floats(0.01, 1), min_size=1, max_size=8)


def drawn(order: MixtureOrder, first: int, last: int, size: int) -> list[tuple[int, int]]:
    return [sample for step in range(first, last) for sample in order.batch(step, size)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_no_prefix_is_off_by_a_whole_slot(counts: list[int]) -> None:
    order = spread_slots(np.asarray(counts))
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    seen = np.cumsum(order[:, None] == np.arange(len(counts)), axis=0)
    share = np.arange(1, len(order) + 1)[:, None] * np.asarray(counts) / len(order)
    assert np.abs(seen - share).max() < 1


@pytest.mark.slow
@given(ratio_lists, st.integers(0, 10_000), st.integers(1, 300))
@settings(deadline=None, max_examples=15)
def test_a_window_of_100_batches_holds_the_ratios(ratios: list[float], first: int, size: int) -> None:
    order = MixtureOrder([1_000_003] * len(ratios), ratios, 0)
    counts = np.asarray(order.counts(first, first + 100, size))
    total = 100 * size
    assert counts.sum() == total
    asked = np.asarray(ratios) / math.fsum(ratios) * total
    # Less than 2 samples for the two ends of the window, and less than 1/10,000 of it for the rounded ratio.
    assert (np.abs(counts - asked) < 2 + total / PERIOD).all()


@pytest.mark.parametrize("first", [0, 7, 12_345])
def test_ratios_from_one_hundredth_hold_within_one_percent(first: int) -> None:
    ratios = [0.01, 0.04, 0.25, 0.3, 0.4]
    counts = np.asarray(MixtureOrder([50] * 5, ratios, 3).counts(first, first + 100, 256))
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


@pytest.mark.slow
@given(st.lists(st.floats(1e-7, 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_periods_are_full_and_leave_no_source_out(ratios: list[float]) -> None:
    counts = period_counts(ratios)
    assert counts.min() >= 1
    assert counts.sum() <= PERIOD


@pytest.mark.slow
@given(ratio_lists, st.integers(0, 10_000), st.integers(2, 300))
@settings(deadline=None, max_examples=15)
def test_a_window_of_100_batches_is_within_a_hundredth_of_every_ratio(
    ratios: list[float], first: int, size: int
) -> None:
    order = MixtureOrder([1_000_003] * len(ratios), ratios, 0)
    shares = np.asarray(order.counts(first, first + 100, size)) / (100 * size)
    asked = np.asarray(ratios) / math.fsum(ratios)
    assert np.abs(shares - asked).max() < 0.01
    large = asked * 100 * size >= 1000  # of which a sample more or less is no hundredth
    assert (np.abs(shares / asked - 1)[large & (asked > 0.02)] < 0.01).all()


sources = st.lists(st.tuples(st.integers(1, 40), st.floats(0.02, 1)), min_size=1, max_size=5)


@pytest.mark.slow
@given(sources, st.integers(1, 32), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_each_row_is_seen_once_per_pass(sources: list[tuple[int, float]], size: int, seed: int) -> None:
    order = MixtureOrder(*zip(*sources, strict=True), seed)
    rows: list[list[int]] = [[] for _ in sources]
    # The order within a step is random, so that passes are told apart where each step has one sample.
    for source, row in drawn(order, 0, 400, 1):
        rows[source].append(row)
    for (length, _), seen in zip(sources, rows, strict=True):
        for k in range(0, len(seen), length):
            one = seen[k : k + length]
            assert len(set(one)) == len(one)  # the last pass may not be over
            assert len(one) < length or sorted(one) == list(range(length))
    # And however the steps are cut, the same rows are drawn.
    steps = 400 // size
    assert Counter(drawn(order, 0, steps, size)) == Counter(drawn(order, 0, steps * size, 1))


def test_each_pass_has_an_order_of_its_own() -> None:
    order = MixtureOrder([20, 7], [0.5, 0.5], 5)
    rows = [row for source, row in drawn(order, 0, 400, 1) if source == 0]
    passes = [tuple(rows[k : k + 20]) for k in range(0, 200, 20)]
    assert len(set(passes)) == 10
    assert order.passes(0, 47) == (2, pytest.approx(rows[40:47]))


@pytest.mark.slow
@given(sources, st.integers(1, 64), st.integers(0, 10**6), st.data())
@settings(deadline=None, max_examples=30)
def test_a_step_depends_on_seed_mixture_and_number_alone(
    sources: list[tuple[int, float]], size: int, seed: int, data: st.DataObject
) -> None:
    sizes, ratios = zip(*sources, strict=True)
    whole = MixtureOrder(sizes, ratios, seed)
    batches = [whole.batch(step, size) for step in range(30)]
    resumed = pickle.loads(pickle.dumps(MixtureOrder(sizes, ratios, seed)))
    for step in data.draw(st.lists(st.integers(0, 29), max_size=10)):
        assert resumed.batch(step, size) == batches[step]


def test_seeds_differ() -> None:
    one, two = (MixtureOrder([40, 30, 9], [0.2, 0.5, 0.3], seed) for seed in (1, 2))
    assert one.batch(0, 16) != two.batch(0, 16)


@pytest.mark.slow
@given(ratio_lists, st.integers(1, 400), st.integers(1, 40), st.integers(1, 120))
@settings(deadline=None, max_examples=25)
def test_the_worst_window_is_the_worst_of_all(ratios: list[float], last: int, size: int, window: int) -> None:
    order = MixtureOrder([5] * len(ratios), ratios, 0)
    length = min(window, last)
    counts = np.asarray([order.counts(first, first + length, size) for first in range(last - length + 1)])
    shares = counts / (length * size)
    worst = order.worst_shares(last, size, window)
    assert np.abs(np.asarray(worst) - order.ratios) == pytest.approx(
        np.abs(shares - order.ratios).max(axis=0), abs=1e-12
    )


@pytest.mark.slow
@given(ratio_lists, st.integers(0, 50), st.integers(0, 30), st.integers(1, 64))
@settings(deadline=None, max_examples=15)
def test_counts_are_those_of_the_batches(ratios: list[float], first: int, steps: int, size: int) -> None:
    order = MixtureOrder([11] * len(ratios), ratios, 0)
    seen = Counter(source for source, _ in drawn(order, first, first + steps, size))
    assert order.counts(first, first + steps, size) == [seen[source] for source in range(len(ratios))]


def test_sources_are_spread_over_the_slots_of_a_batch() -> None:
    order = MixtureOrder([1000, 1000], [1, 1], 0)
    at_first_slot = Counter(order.batch(step, 8)[0][0] for step in range(400))
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
        MixtureOrder(sizes, ratios, 0)
    with pytest.raises(ValueError, match="step -1"):
        MixtureOrder([1], [1], 0).batch(-1, 1)

"""Which sample stands at which place of which training step: a pure function, so that resuming needs no replay.

The slots of all steps form one endless row. The row repeats a period of slots in which every source has a whole number
of slots, spread so evenly that no prefix is off by a whole slot; the n-th slot of a source takes the n-th draw from it,
and draws go through a source in a new random order each time.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

PERIOD = 10_000  # slots of a period where the ratios are no simple fractions
WINDOW = 100  # steps over which shares are promised to hold, and reported
PERMUTATION, BATCH_ORDER = 1, 2  # tags that keep the streams of random numbers apart

IntArray = npt.NDArray[np.int64]


class MixtureOrder:
    """Draws rows of sources so that ratios hold exactly, each source without replacement until it is used up.

    Exactness: in any run of consecutive slots a source's count differs from (length x its share) by less than 2, from
    the first slot on by less than 1. Shares are the ratios themselves where these are fractions over at most 10,000;
    otherwise they are rounded to 1/10,000, a small ratio up to 1/10,000 at least.

    Args:
        sizes: rows of each source, at least 1.
        ratios: share of each source, above 0; need not sum to 1.
        seed: of all random orders.

    Raises:
        ValueError: for an empty source, a ratio of 0 or less, lists of different lengths, or over 10,000 sources.
    """

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float], seed: int) -> None:
        _check(sizes, ratios)
        self.sizes: IntArray = np.asarray(sizes, dtype=np.int64)
        self.ratios = np.asarray(ratios, dtype=np.float64) / math.fsum(ratios)
        self.seed = seed
        self.slots_per_source: IntArray = period_counts(ratios)  # in one period
        self.period = int(self.slots_per_source.sum())
        self._period_sources = spread_slots(self.slots_per_source)
        self._period_ranks = _ranks(self._period_sources, len(sizes))
        self._permutations: dict[int, tuple[int, npt.NDArray[np.integer]]] = {}

    def batch(self, step: int, global_batch_size: int) -> list[tuple[int, int]]:
        """The samples of one step.

        Args:
            step: counted from 0.
            global_batch_size: samples of each step over all processes; must not change between steps of a training.

        Returns:
            (source index, row in source) per slot, in a random order within the step.
        """
        if step < 0 or global_batch_size < 1:
            raise ValueError(f"step {step} must be at least 0 and global_batch_size {global_batch_size} at least 1")
        slots = np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
        offsets = slots % self.period
        sources = self._period_sources[offsets]
        draws = slots // self.period * self.slots_per_source[sources] + self._period_ranks[offsets]
        passes, positions = np.divmod(draws, self.sizes[sources])
        samples = [
            (int(source), int(self._permutation(int(source), int(number))[position]))
            for source, number, position in zip(sources, passes, positions, strict=True)
        ]
        # Without this, a source would stand at the same slots, hence on the same processes, again and again.
        shuffled = _generator(self.seed, BATCH_ORDER, step).permutation(global_batch_size)
        return [samples[k] for k in shuffled]

    def counts(self, first_step: int, last_step: int, global_batch_size: int) -> list[int]:
        """Draws of each source in the steps first_step .. last_step - 1, computed without going through them."""
        if not 0 <= first_step <= last_step:
            raise ValueError(f"needs 0 <= first_step ({first_step}) <= last_step ({last_step})")
        before, after = (self._draws_of_all(step * global_batch_size) for step in (first_step, last_step))
        return [int(count) for count in after - before]

    def passes(self, source: int, draws: int) -> tuple[int, IntArray]:
        """How often so many first draws go through a source in full, and the rows of the pass that they begin."""
        number, rest = divmod(draws, int(self.sizes[source]))
        return number, self._permutation(source, number)[:rest].astype(np.int64)

    def worst_shares(self, last_step: int, global_batch_size: int, window: int = WINDOW) -> list[float]:
        """The share of each source in that run of `window` steps up to the last where it is furthest from the ratio.

        Exact over all such runs; the one run of all steps where there are fewer.
        """
        window = min(window, last_step)
        # A run's counts depend on the place in the period where it starts, so that many are all there are.
        starts = np.arange(min(last_step - window + 1, self.period), dtype=np.int64) * global_batch_size
        total = window * global_batch_size
        shares = []
        for source, asked in enumerate(self.ratios):
            drawn = self._draws_of(source, starts + total) - self._draws_of(source, starts)
            shares.append(float(drawn[np.argmax(np.abs(drawn / total - asked))] / total))
        return shares

    def _draws_of(self, source: int, slots: IntArray) -> IntArray:
        """Draws of one source in the first so many slots."""
        periods, rest = np.divmod(slots, self.period)
        places = np.flatnonzero(self._period_sources == source)
        return periods * self.slots_per_source[source] + np.searchsorted(places, rest)

    def _draws_of_all(self, slots: int) -> IntArray:
        """Draws of each source in the first so many slots."""
        periods, rest = divmod(slots, self.period)
        return periods * self.slots_per_source + np.bincount(self._period_sources[:rest], minlength=len(self.sizes))

    def _permutation(self, source: int, number: int) -> npt.NDArray[np.integer]:
        """The order of a source's rows in its pass `number`; the last one used is kept for each source."""
        kept = self._permutations.get(source)
        if kept is None or kept[0] != number:
            size = int(self.sizes[source])
            rows = np.arange(size, dtype=np.uint32 if size <= 2**32 else np.int64)  # half the memory for usual sizes
            kept = (number, _generator(self.seed, PERMUTATION, source, number).permutation(rows))
            self._permutations[source] = kept
        return kept[1]


def _check(sizes: Sequence[int], ratios: Sequence[float]) -> None:
    if not sizes or len(sizes) != len(ratios):
        raise ValueError(f"needs as many sizes ({len(sizes)}) as ratios ({len(ratios)}), and at least one")
    for source, (size, ratio) in enumerate(zip(sizes, ratios, strict=True)):
        if size < 1:
            raise ValueError(f"source {source} has {size} rows; give it some, or ratio 0 in the mixture")
        if not (math.isfinite(ratio) and ratio > 0):
            raise ValueError(f"source {source} has ratio {ratio}; it must be above 0")
    if len(sizes) > PERIOD:
        raise ValueError(f"{len(sizes)} sources; at most {PERIOD} can be mixed. Join some .jsonl files.")


def _generator(seed: int, *numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *numbers])))


def period_counts(ratios: Sequence[float]) -> IntArray:
    """Slots of each source in one period: exact where the ratios are simple fractions, else by largest remainder."""
    total = math.fsum(ratios)
    fractions = [Fraction(ratio / total).limit_denominator(PERIOD) for ratio in ratios]
    # Ratios that were multiplied and normalised on the way carry rounding errors of a few units in the last place.
    exact = all(abs(float(part) - ratio / total) < 1e-12 for part, ratio in zip(fractions, ratios, strict=True))
    period = math.lcm(*(part.denominator for part in fractions)) if exact else 0
    if exact and sum(fractions) == 1 and period <= PERIOD:
        return np.asarray([int(part * period) for part in fractions], dtype=np.int64)
    asked = np.asarray(ratios, dtype=np.float64) / total * PERIOD
    counts = np.maximum(np.floor(asked), 1).astype(np.int64)
    while (missing := PERIOD - int(counts.sum())) != 0:
        # One slot at a time, to the source with the largest claim or from the one with the smallest that can give.
        claim = asked - counts
        if missing > 0:
            counts[int(np.argmax(claim))] += 1
        else:
            counts[int(np.argmin(np.where(counts > 1, claim, np.inf)))] -= 1
    return counts


def spread_slots(counts: IntArray) -> IntArray:
    """Orders the slots of a period so that in every prefix each source has its share to within less than one slot.

    Tijdeman, "The chairman assignment problem" (1980): the deviation is at most 1 - 1 / (2 k - 2) for k sources. Of the
    sources that may have one more slot now, the one takes it whose deadline for it comes first.

    Returns:
        Source index per slot.
    """
    period, number = int(counts.sum()), len(counts)
    if number == 1:
        return np.zeros(period, dtype=np.int64)
    slack = 2 * number - 2
    # All in whole numbers: `due` is (share x slots so far - slots had) x period x slack.
    due = np.zeros(number, dtype=np.int64)
    order = np.empty(period, dtype=np.int64)
    for slot in range(period):
        due += counts * slack
        # Slots until the source would be off by more than allowed.
        deadline = np.where(due >= period, (period * (slack - 1) - due) / counts, np.inf)
        chosen = int(np.argmin(deadline))
        order[slot] = chosen
        due[chosen] -= period * slack
    return order


def _ranks(order: IntArray, number: int) -> IntArray:
    """How many earlier slots of the period have the same source."""
    ranks = np.empty_like(order)
    for source in range(number):
        places = np.flatnonzero(order == source)
        ranks[places] = np.arange(len(places))
    return ranks

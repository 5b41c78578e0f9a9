"""How a step's samples are dealt to processes: equally many, and with as little waiting as their sizes allow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitune.loading.balance import deal, waste

pytestmark = pytest.mark.unit

SIDES = (256, 512, 576, 768, 1024)


def mixed_resolutions(rng: np.random.Generator, number: int) -> np.ndarray:
    """Tokens of samples by the published limits: outputs of up to 1024 x 1024, up to three references, text."""
    tokens = []
    for _ in range(number):
        references = int(rng.integers(0, 4))
        limit = (1024**2, 1024**2, 1024**2, 768**2)[references]
        images = [1024**2, *[limit] * references]
        tokens.append(sum(min(int(np.prod(rng.choice(SIDES, 2))), most) // 256 for most in images))
    return np.asarray(tokens) + rng.integers(20, 300, number)


def in_order(number: int, microbatches: int, processes: int) -> np.ndarray:
    """Each process a run of slots: what would be dealt without a look at tokens."""
    return np.arange(number).reshape(processes, microbatches, -1).transpose(1, 0, 2)


def share(steps: list[tuple[int, int]]) -> float:
    waited, computed = np.sum(steps, axis=0)
    return float(waited / (waited + computed))


@pytest.mark.slow
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 6), st.data())
@settings(deadline=None, max_examples=100)
def test_every_slot_is_dealt_once_and_no_worse_than_in_order(
    microbatches: int, processes: int, size: int, data: st.DataObject
) -> None:
    number = microbatches * processes * size
    tokens = np.asarray(data.draw(st.lists(st.integers(1, 9000), min_size=number, max_size=number)))
    slots = deal(tokens, microbatches, processes)
    assert slots.shape == (microbatches, processes, size)
    assert sorted(slots.ravel().tolist()) == list(range(number))
    assert (deal(tokens.copy(), microbatches, processes) == slots).all()
    assert waste(tokens, slots)[1] == tokens.sum()
    if microbatches == 1:
        assert waste(tokens, slots) <= waste(tokens, in_order(number, 1, processes))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize(("microbatches", "size"), [(1, 4), (1, 8), (4, 4)])
def test_mixed_resolutions_waste_at_most_a_twentieth(processes: int, microbatches: int, size: int) -> None:
    rng = np.random.default_rng(processes)
    dealt, ordered = [], []
    for _ in range(40):
        tokens = mixed_resolutions(rng, processes * microbatches * size)
        dealt.append(waste(tokens, deal(tokens, microbatches, processes)))
        ordered.append(waste(tokens, in_order(len(tokens), microbatches, processes)))
    assert share(dealt) < 0.02
    assert share(ordered) > 0.05


def test_single_samples_of_like_sizes_share_a_microbatch() -> None:
    tokens = np.asarray([900, 100, 500, 510, 110, 890])
    slots = deal(tokens, 3, 2)
    assert [sorted(tokens[microbatch].ravel().tolist()) for microbatch in slots] == [[890, 900], [500, 510], [100, 110]]
    assert waste(tokens, slots) == (30, 3010)


def test_swaps_mend_what_dealing_the_longest_first_leaves() -> None:
    tokens = np.asarray([8, 7, 6, 5, 4, 2])
    assert waste(tokens, deal(tokens, 1, 2)) == (0, 32)


def test_one_process_waits_for_nobody() -> None:
    tokens = np.asarray([5, 1, 4, 2])
    slots = deal(tokens, 2, 1)
    assert slots.tolist() == [[[0, 1]], [[2, 3]]]
    assert waste(tokens, slots) == (0, 12)

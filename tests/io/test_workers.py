"""Work in processes of its own: in order, and what ends a process takes down its own item alone."""

import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from omnitune.io.workers import WAITING_PER_WORKER, cpu_limit, ordered_map

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever threads other tests have left, which wait for nothing."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)


def portions(count: int, size: int = 4) -> list[list[int]]:
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def flat(results: Iterator[list]) -> list:
    return [result for portion in results for result in portion]


def died(number: int, code: int) -> str:
    return f"{number} by {signal.Signals(-code).name}"


def odd_ones_die(number: int) -> int:
    faulthandler.disable()
    if number in {5, 6, 21}:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 23:
        raise MemoryError
    return number


@pytest.mark.parametrize("workers", [2, 3])
def test_items_that_end_their_process_are_replaced_and_all_others_stay(workers: int) -> None:
    expected = [*range(30)]
    for number, name in ((5, "SEGV"), (6, "SEGV"), (21, "SEGV"), (23, "KILL")):
        expected[number] = f"{number} by SIG{name}"
    assert flat(ordered_map(odd_ones_die, portions(30), workers, died)) == expected


def busy(number: int) -> int:
    with cpu_limit(0.2):
        if number == 1:
            pow(3, 1 << 24)  # in C, where no handler of Python's would run
            while True:
                pass
    return number


def test_what_takes_too_long_is_ended_once() -> None:
    start = time.monotonic()
    assert flat(ordered_map(busy, [[0, 1, 2]], 2, died)) == [0, "1 by SIGPROF", 2]
    assert time.monotonic() - start < 20
    with cpu_limit(0.001):  # not in a worker
        sum(range(1_000_000))


def test_one_death_by_another_ones_memory_is_forgiven(tmp_path) -> None:
    def killed_once(number: int) -> int:
        mark = tmp_path / str(number)
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert flat(ordered_map(killed_once, portions(5), 2, died)) == [*range(5)]


def test_the_first_error_ends_it() -> None:
    def refuse(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with pytest.raises(ValueError, match="three") as error:
        flat(ordered_map(refuse, portions(100), 2, died))
    assert "in refuse" in error.value.__notes__[0]


def test_only_a_few_portions_are_taken_ahead() -> None:
    taken = []

    def endless() -> Iterator[list[int]]:
        while True:
            taken.append(1)
            yield [len(taken)]

    results = ordered_map(abs, endless(), 2, died)
    assert [next(results) for _ in range(3)] == [[1], [2], [3]]
    assert len(taken) <= 2 * WAITING_PER_WORKER + 4
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_with_threads_is_not_forked(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """A worker that is started anew has nothing of this process; it is replaced and ends like another."""
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert flat(ordered_map(abs, [[-1, -2], [-3]], workers, died)) == [1, 2, 3]
    assert flat(ordered_map(math.sqrt, [[4.0]], workers, died, may_fork=workers == 1)) == [2.0]
    with pytest.raises(ValueError, match="math domain error"):
        flat(ordered_map(math.sqrt, [[-1.0]], workers, died))
    assert flat(ordered_map(signal.raise_signal, [[signal.SIGTERM]], workers, died_by)) == [-signal.SIGTERM]


def died_by(item: object, code: int) -> int:
    return code


def test_workers_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="workers: 0 is not allowed"):
        flat(ordered_map(abs, [[1]], 0, died))

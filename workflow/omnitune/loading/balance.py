"""Deal the samples of one step to processes so that none waits for another."""

import heapq

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def deal(tokens: IntArray, microbatches: int, processes: int) -> IntArray:
    """Deals the slots of a global batch, equally many to each process and microbatch.

    A forward computes on its samples' own tokens, without padding, so what a step can lose is the time for which
    processes wait for the one with most tokens in the same microbatch. Longest sample first to the cell with least,
    cells of like sums into one microbatch, then swaps within each; a function of the tokens alone.

    Args:
        tokens: of the sample in each slot, [microbatches x processes x batch size].

    Returns:
        Slots [microbatches, processes, batch size], ascending in each cell.
    """
    cells = microbatches * processes
    size = len(tokens) // cells
    if processes == 1:
        return np.arange(len(tokens)).reshape(microbatches, 1, size)
    filled: list[list[int]] = [[] for _ in range(cells)]
    sums = [(0, cell) for cell in range(cells)]
    for slot in np.argsort(-tokens, kind="stable").tolist():
        total, cell = heapq.heappop(sums)
        filled[cell].append(slot)
        if len(filled[cell]) < size:
            heapq.heappush(sums, (total + int(tokens[slot]), cell))
    slots = np.asarray(filled, dtype=np.int64)
    slots = slots[np.argsort(-tokens[slots].sum(axis=1), kind="stable")].reshape(microbatches, processes, size)
    for microbatch in slots:
        _level(microbatch, tokens)
    return np.sort(slots, axis=-1)


def _level(slots: IntArray, tokens: IntArray) -> None:
    """Swaps samples of the process with most tokens for smaller ones as long as that lowers the larger of two sums."""
    while True:
        own = tokens[slots]  # [processes, batch size]
        sums = own.sum(axis=1)
        top = int(np.argmax(sums))
        given = own[top][:, None, None] - own[None]  # [sample of top, process, its sample]
        larger = np.maximum(sums[top] - given, sums[None, :, None] + given)
        mine, other, its = np.unravel_index(int(np.argmin(larger)), larger.shape)
        if larger[mine, other, its] >= sums[top]:
            return
        slots[top, mine], slots[other, its] = slots[other, its], slots[top, mine]


def waste(tokens: IntArray, slots: IntArray) -> tuple[int, int]:
    """(tokens that fit into the time that processes waited, tokens of the samples) of slots as `deal` gives them."""
    sums = tokens[slots].sum(axis=-1)
    total = int(sums.sum())
    return int(sums.max(axis=1).sum()) * slots.shape[1] - total, total

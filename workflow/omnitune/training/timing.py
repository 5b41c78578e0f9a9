"""What the seconds of a step go into, and the memory of a process."""

import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from omnitune.flops import peak_flops


class StepClock:
    """Times the parts of a step: on a GPU by events, which do not make the step wait for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.started = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begins a step."""
        self.started = time.perf_counter()
        self._seconds.clear()
        self._events.clear()

    @contextmanager
    def part(self, name: str, on_device: bool = True) -> Iterator[None]:
        """Around a part of the step; parts of one name add up. `on_device`: whether its work is the GPU's."""
        if self.cuda and on_device:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        begun = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - begun

    def finish(self) -> tuple[float, dict[str, float]]:
        """Seconds of the step so far, and of each of its parts; call it once the GPU has done them."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        return time.perf_counter() - self.started, dict(self._seconds)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory that this process has held so far, in MB: of the GPU, or of the machine without one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def device_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOPs per second of the device, as model FLOPs utilisation refers to it; None where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device), dtype) if device.type == "cuda" else None

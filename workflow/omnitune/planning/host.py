"""CPU memory of the jobs that load a model: a function of its size, which the rules ask for. Imports nothing heavy."""

import math
from collections.abc import Iterable
from pathlib import Path

from omnitune.io.weights import read_header

LIBRARIES_MB = 4000  # a process with its libraries, and what it does beside the weights


def parameters_of(folders: Iterable[Path]) -> int:
    """How many numbers the .safetensors files of folders hold, by their headers; 0 for what is not there yet."""
    files = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return sum(math.prod(shape) for path in files for shape in read_header(path).shapes.values())


def host_memory_mb(folders: Iterable[Path], bytes_each: int, processes: int = 1, least: int = LIBRARIES_MB) -> int:
    """MB of a job on one node: each of its processes loads these weights into CPU memory before they go to a GPU.

    Args:
        folders: of the weights.
        bytes_each: of a parameter in memory.
        processes: of the job on a node.
        least: without any weights.
    """
    return least + processes * math.ceil(parameters_of(folders) * bytes_each / 1e6)

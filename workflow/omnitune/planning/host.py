"""What jobs ask a machine for: CPU memory by the model's size, threads, time of a training. Imports nothing heavy."""

import math
from collections.abc import Iterable
from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.io.model_files.weights import read_header
from omnitune.training.progress import read_progress

LIBRARIES_MB = 4000  # a process with its libraries, and what it does beside the weights
PROCESS_MB, READER_MB = 2000, 500  # of a training: each process, and each of its readers with what it has read ahead
UNKNOWN_MINUTES = 7200  # of a training that has not run yet
MARGIN, EXTRA_MINUTES = 1.5, 60  # of time that was measured; for starting, held-out losses and images


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


def training_memory_mb(options: ExperimentOptions, transformer: Path, processes: int) -> int:
    """MB of a training on one node, with gradients and optimizer where these stay on the CPU.

    Args:
        options: of the experiment.
        transformer: folder of the weights that each process loads in float32.
        processes: on the node.
    """
    train = options.train
    kept = 16 if train.cpu_offload or train.async_checkpoint else 4
    libraries = LIBRARIES_MB + processes * (PROCESS_MB + train.dataloader_num_workers * READER_MB)
    return host_memory_mb([transformer], kept, processes, least=max(libraries, 2 * LIBRARIES_MB))


def training_threads(options: ExperimentOptions, processes: int) -> int:
    """CPU threads of a training on one node: its processes, and the readers of each."""
    return max(processes * (1 + options.train.dataloader_num_workers), 2)


def training_minutes(options: ExperimentOptions, metrics: Path) -> int:
    """Time that a training asks for: what is left at the pace of its steps so far, with a margin, or else days."""
    progress = read_progress(metrics)
    if progress is None or progress.seconds_per_step is None:
        return UNKNOWN_MINUTES
    left = max(options.train.max_train_steps - progress.step, 0) * progress.seconds_per_step / 60
    return math.ceil(MARGIN * left) + EXTRA_MINUTES

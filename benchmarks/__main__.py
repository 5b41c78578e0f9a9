"""`make bench`: every benchmark, side by side, as tables with the machine's description; or those that are named.

python -m benchmarks                     # all that this machine can run
python -m benchmarks loading sharding    # two of them
"""

import importlib
import os
import platform
import sys

import torch
from rich.console import Console

TOPICS = ("validation", "sharding", "encoding", "loading", "mixed_batch", "step_loop", "saving")
GPU_TOPICS = ("gpu",)


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    known = TOPICS + GPU_TOPICS
    topics = sys.argv[1:] or (known if torch.cuda.is_available() else TOPICS)
    unknown = sorted(set(topics) - set(known))
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; known: {', '.join(known)}")
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    for topic in topics:
        for table in importlib.import_module(f"benchmarks.{topic}").tables():
            console.print(table)


if __name__ == "__main__":
    main()

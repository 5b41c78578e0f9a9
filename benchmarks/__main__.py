"""`make bench`: every benchmark, side by side, as tables with the machine's description; or those that are named.

python -m benchmarks                     # all
python -m benchmarks loading sharding    # two of them
"""

import importlib
import os
import platform
import sys

import torch
from rich.console import Console

TOPICS = ("validation", "sharding", "encoding", "loading", "mixed_batch")


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    topics = sys.argv[1:] or TOPICS
    unknown = sorted(set(topics) - set(TOPICS))
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; known: {', '.join(TOPICS)}")
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

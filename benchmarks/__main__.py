"""`make bench`: every benchmark, side by side, as tables with the machine's description; or those that are named.

python -m benchmarks                     # all that this machine can run
python -m benchmarks loading sharding    # two of them
python -m benchmarks gpu.step --json out.json    # a part of one; its figures as JSON too (gpu)
"""

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

import torch
from rich.console import Console

TOPICS = (
    "validation",
    "sharding",
    "encoding",
    "loading",
    "mixed_batch",
    "step_loop",
    "saving",
    "convert",
    "drawing",
    "step_caches",
    "scaling",
)
GPU_TOPICS = ("gpu",)


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Runs all benchmarks, or those named.")
    parser.add_argument("topics", nargs="*", help="such as loading, gpu or gpu.step")
    parser.add_argument("--json", type=Path, help="file for the figures of topic gpu")
    arguments = parser.parse_args()
    known = TOPICS + GPU_TOPICS
    topics = arguments.topics or (known if torch.cuda.is_available() else TOPICS)
    unknown = sorted({topic for topic in topics if topic.partition(".")[0] not in known})
    if unknown:
        raise SystemExit(f"no benchmark is called {', '.join(unknown)}; known: {', '.join(known)}")
    console = Console()
    console.print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    for topic in topics:
        name, _, part = topic.partition(".")
        module = importlib.import_module(f"benchmarks.{name}")
        for table in module.tables(part) if part else module.tables():
            console.print(table)
            if arguments.json:
                arguments.json.write_text(json.dumps(module.RESULTS, indent=1))


if __name__ == "__main__":
    main()

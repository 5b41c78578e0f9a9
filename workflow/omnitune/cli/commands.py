"""Every command, in the order of `omnitune --help`, and the entry point."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from omnitune.cli.evaluation import evaluate, report, vote
from omnitune.cli.generate import generate
from omnitune.cli.shards import encode, shard
from omnitune.cli.training import plan, train
from omnitune.cli.upkeep import doctor, remove, rename, schema, status
from omnitune.cli.validate import validate
from omnitune.cli.weights import convert, inspect, merge, publish
from omnitune.console import job

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fine-tune OmniGen2. `snakemake --cores 2` runs the whole workflow; these commands run its stages one by one.",
)
for command in (
    *(validate, shard, encode, plan, train),
    *(convert, merge, inspect, publish, generate, evaluate, report),
    *(status, vote, doctor, rename, remove, schema),
):
    app.command()(command)


def _spread(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """Repeats an option before each of its values: the published `--input_image_path a b` is one option, two values."""
    result: list[str] = []
    current = None
    for word in arguments:
        if word.startswith("--"):
            current = word if word in names else None
            result.append(word)  # also of one that no value follows, which is then said
        elif current and result[-1] != current:
            result += [current, word]
        else:
            result.append(word)
    return result


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 1, without a traceback."""
    run: Callable[..., Any] = app
    with job():
        names = [f"--{name}" for name in ("input_image_path", "transformer_lora_path", "transformer_lora_scale")]
        run(_spread(sys.argv[1:], (*names, *(f"--{name[2:].replace('_', '-')}" for name in names))))

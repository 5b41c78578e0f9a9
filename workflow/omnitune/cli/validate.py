"""`omnitune validate`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from omnitune.cli.options import (
    CPUS,
    INPUT_PIXELS,
    OUTPUT_PIXELS,
    SIDE_LENGTH,
    InputPixels,
    OutputPixels,
    PrivateNetworks,
    SideLength,
    input_limits,
    option,
)

Mixture = Annotated[Path, typer.Argument(help="Mixture file (.yml).")]
Output = Annotated[
    Path, option("output", "Folder to write: samples.parquet, rejected.jsonl, summary.json, and shards/ to shard from.")
]
Depth = Annotated[
    Literal["header", "full"],
    option("depth", "full decodes and hashes every image; header reads the first bytes for format, size and mode."),
]
MaxRejectFraction = Annotated[
    float, option("max_reject_fraction", "Exit with an error above this share of rejected rows, 0 to 1.", min=0, max=1)
]
Tokenizer = Annotated[
    Path | None,
    option(
        "tokenizer", "Pipeline folder whose tokenizer counts the instructions' tokens. Without it none are counted."
    ),
]
MaximumTextTokens = Annotated[
    int,
    option("maximum_text_tokens", "With --tokenizer: reject instructions of more tokens, the chat included.", min=1),
]
MaxImagePixels = Annotated[
    int, option("max_image_pixels", "Reject images of more pixels as decompression bombs.", min=1)
]
ImageRoot = Annotated[str | None, option("image_root", "Reject images that do not lie below this folder or URL.")]
SourceRoots = Annotated[
    list[str] | None,
    option(
        "source_root",
        "Read samples below this folder or URL alone; may be given several times. "
        "Without it: below the working directory and the mixture's own folder, and at any URL.",
    ),
]
SamplesPerShard = Annotated[int, option("samples_per_shard", "Rows of a source that go into one tar.", min=1)]
Workers = Annotated[int, option("workers", "Processes that look at images.", min=1)]


def validate(
    mixture: Mixture,
    output: Output,
    depth: Depth = "full",
    max_reject_fraction: MaxRejectFraction = 0.01,
    tokenizer: Tokenizer = None,
    maximum_text_tokens: MaximumTextTokens = 888,
    max_image_pixels: MaxImagePixels = 178956970,
    image_root: ImageRoot = None,
    source_root: SourceRoots = None,
    private_network: PrivateNetworks = None,
    samples_per_shard: SamplesPerShard = 1000,
    max_output_pixels: OutputPixels = OUTPUT_PIXELS,
    max_input_pixels: InputPixels = INPUT_PIXELS,
    max_side_length: SideLength = SIDE_LENGTH,
    workers: Workers = CPUS,
) -> None:
    """Check every row and image of a mixture; rejected ones go to a ledger with their reasons.

    Pixel limits are those that `omnitune shard` will be given: they refuse images that would have no pixels left.

    Prints a summary, and exits with an error where more rows are rejected than allowed; the ledger is kept in
    OUTPUT.failed then.
    """
    from rich.console import Console

    from omnitune.config.urls import with_networks
    from omnitune.images.prepare import ImageLimits
    from omnitune.validation.dataset import RejectedTooMany, validate_mixture
    from omnitune.validation.source import Checks
    from omnitune.validation.summary import summary_tables

    checks = Checks(
        depth,
        max_image_pixels,
        image_root,
        maximum_text_tokens,
        tokenizer=_tokenizer(tokenizer),
        urls=with_networks(private_network),
        source_roots=tuple(source_root or ()),
    )
    limits = ImageLimits(max_output_pixels, input_limits(max_input_pixels), max_side_length)
    cut: dict[str, Any] = {"samples_per_shard": samples_per_shard, "limits": vars(limits)}
    roots = source_root or None
    try:
        summary = validate_mixture(
            mixture, output, checks, workers=workers, max_reject_fraction=max_reject_fraction, source_roots=roots, **cut
        )
    except RejectedTooMany as error:
        Console().print(*summary_tables(error.summary), sep="\n")
        raise
    Console().print(*summary_tables(summary), sep="\n")


def _tokenizer(folder: Path | None) -> str | None:
    """The pipeline folder whose tokenizer counts; ValueError where it is none."""
    if folder and not (folder / "processor").is_dir() and not (folder / "mllm").is_dir():
        raise ValueError(f"--tokenizer: {folder} is no pipeline folder: it has neither processor/ nor mllm/.")
    return str(folder) if folder else None

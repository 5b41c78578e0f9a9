"""How options are declared, and those that several commands share."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from omnitune.config.data import DataOptions

CPUS = os.cpu_count() or 1


def option(name: str, text: str, **settings: Any) -> Any:
    """An option under its published name, with underscores, and with dashes as well; `settings` are typer's."""
    dashed = name.replace("_", "-")
    return typer.Option(*dict.fromkeys([f"--{name}", f"--{dashed}"]), help=text, **settings)


def flag(name: str, text: str) -> Any:
    """The same of one that is given without a value."""
    return typer.Option(f"--{name}", f"--{name.replace('_', '-')}", help=text)


class Dtype(StrEnum):
    """Precisions of the weights."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Config = Annotated[Path, typer.Option("--config", help="Options file of the experiment (config/options/*.yml).")]
WorkflowConfig = Annotated[Path, typer.Option("--config", help="The workflow's config.")]
Base = Annotated[Path | None, option("base", "Base pipeline folder, if not the workflow's.")]
Index = Annotated[Path | None, option("index", "index.parquet of the shards, if not prepared/{dataset}/shards.")]
Ema = Annotated[bool, typer.Option("--ema", help="The average of the weights (train.ema_decay) in their place.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PrivateNetworks = Annotated[
    list[str] | None,
    option(
        "private_network",
        "Address or network (10.1.0.0/16) that URLs may lead to although it is not public; may be given several times.",
    ),
]
OutputPixels = Annotated[int, option("max_output_pixels", "Limit of output images in pixels.", min=256)]
InputPixels = Annotated[
    str, option("max_input_pixels", "Limit of input images, or limits for 1, 2, .. inputs: N[,N..].")
]
SideLength = Annotated[int, option("max_side_length", "Limit of any side in pixels.", min=16)]
USUAL = {name: field.default for name, field in DataOptions.model_fields.items()}
OUTPUT_PIXELS, SIDE_LENGTH = USUAL["max_output_pixels"], USUAL["max_side_length"]
INPUT_PIXELS = ",".join(map(str, USUAL["max_input_pixels"]))


def input_limits(text: str) -> list[int]:
    """The numbers of --max_input_pixels; ValueError for what is none, or too few pixels."""
    try:
        limits = [int(word) for word in text.split(",")]
    except ValueError:
        limits = [0]
    if min(limits) < 256:
        raise ValueError(
            f"--max_input_pixels: {text!r} is not allowed; give numbers of at least 256, as in 1048576,589824."
        )
    return limits

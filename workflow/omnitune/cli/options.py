"""How options are declared, and those that several commands share."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

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

"""`omnitune convert`, `merge`, `inspect` and `publish`: weights, for other programs and of them."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer

from omnitune.cli.options import AsJson, Dtype, Ema, flag, option
from omnitune.errors import cut, printable
from omnitune.paths import FORMATS, Format
from omnitune.stages import Experiment

logger = logging.getLogger("omnitune")

SHOWN_CHARACTERS = 2_000  # of a fact; names in a file may be of any length


def convert(
    config_path: Annotated[Path, option("config_path", "Options file of the experiment.")],
    model_path: Annotated[Path, option("model_path", "Checkpoint: checkpoint-N/, a .bin or a .safetensors file.")],
    save_path: Annotated[
        Path,
        option(
            "save_path",
            "Folder to write, by custom checkpoint-N/transformer or transformer_lora, and _ema of averages.",
        ),
    ],
    ema: Ema = False,
    transformer: Annotated[
        Path | None, option("transformer", "Transformer folder that training started from, if not the workflow's.")
    ] = None,
    base: Annotated[
        Path | None, option("base", "Base pipeline folder (--format pipeline), if not the workflow's.")
    ] = None,
    weight_format: Annotated[Format, option("format", "What to write.")] = FORMATS[0],
    dtype: Annotated[
        Dtype | None, option("dtype", "Precision of the written weights. Default: convert.dtype of the options.")
    ] = None,
    max_shard_size: Annotated[
        str | None, option("max_shard_size", "Of a weight file, as in 5GB. Default: convert.max_shard_size.")
    ] = None,
    scale: Annotated[float, option("scale", "Strength of an adapter that is merged.")] = 1.0,
    rank: Annotated[
        int | None,
        option("rank", "Of the LoRA of --format extracted. Default: convert.extracted_rank of the options.", min=1),
    ] = None,
) -> None:
    """Convert a training checkpoint for other programs, account for every key and verify what was written."""
    from omnitune.conversion.export import convert as convert_checkpoint
    from omnitune.conversion.write import Target
    from omnitune.pretrained.transformer import require_transformer

    if transformer:
        require_transformer(transformer, "--transformer")
    if rank and weight_format != "extracted":
        raise ValueError(f"--rank is of a LoRA that is extracted; --format {weight_format} has none.")
    experiment = Experiment.alone(config_path)
    start, asked = transformer or experiment.start.transformer, experiment.options.convert
    precision, size = dtype.value if dtype else asked.dtype, max_shard_size or asked.max_shard_size
    base, rank = base or experiment.start.base, rank or asked.extracted_rank
    target = Target(weight_format, precision, size, base, rank)
    report = convert_checkpoint(experiment.options, model_path, save_path, start, ema=ema, target=target, scale=scale)
    logger.info("wrote %s: %s, %d tensors, %s, verified", save_path, report["kind"], report["keys"], report["dtype"])


def merge(
    transformer: Annotated[Path, option("transformer", "Transformer folder that the adapters are merged into.")],
    lora: Annotated[list[Path], option("lora", "Adapter, file or folder, of any tool; may be given several times.")],
    save_path: Annotated[Path, option("save_path", "Folder to write.")],
    scale: Annotated[
        list[float] | None, option("scale", "Strength of each adapter, in their order. Default: 1.")
    ] = None,
    weight_format: Annotated[Format, option("format", "merged, comfyui or pipeline.")] = "merged",
    dtype: Annotated[
        Dtype | None, option("dtype", "Precision of the written weights. Default: the transformer's.")
    ] = None,
    max_shard_size: Annotated[str, option("max_shard_size", "Of a weight file, as in 5GB.")] = "10GB",
    base: Annotated[Path | None, option("base", "Base pipeline folder, for --format pipeline.")] = None,
) -> None:
    """Merge one or several adapters into a transformer, and verify what was written."""
    from omnitune.conversion.merge import merge as merge_adapters
    from omnitune.conversion.write import Target

    if weight_format in ("diffusers", "extracted"):
        raise ValueError(f"--format: {weight_format} is an adapter apart; take merged, comfyui or pipeline.")
    target = Target(weight_format, dtype.value if dtype else None, max_shard_size, base)
    merge_adapters(transformer, lora, scale or [], save_path, target)
    logger.info("wrote %s: verified", save_path)


def inspect(
    path: Annotated[Path, typer.Argument(help="Checkpoint, transformer, pipeline or adapter: a folder or a file.")],
    as_json: AsJson = False,
) -> None:
    """Say what weights are and which programs load them, from their headers alone; runs no code of theirs."""
    from omnitune.conversion.inspect import inspect as inspect_weights

    facts = inspect_weights(path)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        text = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else text
        text = "none" if text is None else cut(printable(str(text)), SHOWN_CHARACTERS)
        typer.echo(f"{name + ':':<{width}}{text}")


def publish(
    folder: Annotated[Path, typer.Argument(help="Folder that `omnitune convert` has written.")],
    repo: Annotated[str, typer.Argument(help="Repository of the hub, owner/name; made where there is none.")],
    dry_run: Annotated[bool, flag("dry_run", "Say what would be uploaded, and ask nobody.")] = False,
    private: Annotated[bool, flag("private", "Make a new repository private; one that exists must be.")] = False,
) -> None:
    """Upload converted weights with their model card to the hub; the token is that of HF_TOKEN."""
    from omnitune.conversion.publish import prepare_upload, upload

    what = prepare_upload(folder, repo)
    for name, size in what.files.items():
        typer.echo(f"{size:>15,}  {name}")
    typer.echo(
        f"{sum(what.files.values()):>15,}  bytes in {len(what.files)} files, for {repo}\n\n{printable(what.card)}\n"
    )
    typer.echo("Nothing was uploaded." if dry_run else upload(what, private=private))

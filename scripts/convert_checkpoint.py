"""Convert one checkpoint to the published format and verify it."""

from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.console import job
from omnitune.conversion.export import convert

with job(snakemake.log[0]):
    save_path = Path(snakemake.output.manifest).parent
    convert(
        ExperimentOptions.load(snakemake.input.options),
        model_path=save_path.parent,
        save_path=save_path,
        transformer=Path(snakemake.params.transformer),
        ema=snakemake.wildcards.weights.endswith("_ema"),
    )

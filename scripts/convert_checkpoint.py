"""Convert one checkpoint to the published format and verify it."""

from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.console import job
from omnitune.conversion.export import convert

with job(snakemake.log[0]):
    save_path = Path(snakemake.output.manifest).parent
    convert(
        ExperimentOptions.load(save_path.parents[1] / "options.yml"),  # as it was trained
        model_path=save_path.parent,
        save_path=save_path,
        transformer=Path(snakemake.params.transformer),
        ema=save_path.name.endswith("_ema"),
    )

"""Convert one checkpoint to the published format and verify it."""

import json
from pathlib import Path

from omnitune.config import ExperimentOptions
from omnitune.console import job
from omnitune.conversion.export import convert

with job(snakemake.log[0]):
    save_path = Path(snakemake.output.manifest).parent
    start = Path(snakemake.params.transformer)
    convert(
        ExperimentOptions.load(snakemake.input.options),
        model_path=save_path.parent,
        save_path=save_path,
        transformer_config=json.loads((start / "config.json").read_text(encoding="utf-8")),
    )

"""Generate one part of a benchmark's images."""

from pathlib import Path

from omnitune.config import Benchmark, EvaluatedStep
from omnitune.console import job
from omnitune.evaluation.generate import evaluated_weights, generate_part

with job(snakemake.log[0]):
    wildcards = snakemake.wildcards
    folder = Path(snakemake.output.part).parents[1]
    weights = snakemake.input.get("weights")
    generate_part(
        Benchmark(**snakemake.params.settings),
        evaluated_weights(
            base=Path(snakemake.input.base).parent,
            start=Path(snakemake.params.transformer),
            tuned=Path(weights).parent if EvaluatedStep.parse(wildcards.step).number else None,
        ),
        folder,
        part=int(wildcards.part),
        threads=snakemake.threads,
        name=f"{wildcards.benchmark} {wildcards.experiment}-{wildcards.step}",
    )

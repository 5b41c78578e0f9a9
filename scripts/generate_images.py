"""Generate one part of a benchmark's images."""

from pathlib import Path

from omnitune.console import job
from omnitune.evaluation.generate import generate_part
from omnitune.evaluation.weights import evaluated_weights
from omnitune.paths import EvaluatedStep
from omnitune.project import Project

with job(snakemake.log[0]):
    wildcards, weights = snakemake.wildcards, snakemake.input.get("weights")
    tuned = Path(weights).parent if EvaluatedStep.parse(wildcards.step).number else None
    generate_part(
        Project.load(snakemake.config).benchmarks[wildcards.benchmark],
        evaluated_weights(Path(snakemake.input.base).parent, Path(snakemake.params.transformer), tuned),
        Path(snakemake.output.part).parents[1],
        part=int(wildcards.part),
        threads=snakemake.threads,
        name=f"{wildcards.benchmark} {wildcards.experiment}-{wildcards.step}",
    )

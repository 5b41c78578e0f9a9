"""Score a benchmark's images."""

from pathlib import Path

from omnitune.console import job
from omnitune.evaluation.prompts import read_prompts
from omnitune.evaluation.scoring import score
from omnitune.evaluation.weights import describe_weights, evaluated_weights
from omnitune.paths import EvaluatedStep
from omnitune.project import Project

with job(snakemake.log[0]):
    wildcards, step = snakemake.wildcards, EvaluatedStep.parse(snakemake.wildcards.step)
    project = Project.load(snakemake.config)
    benchmark, start = project.benchmarks[wildcards.benchmark], project.starts[wildcards.experiment]
    tuned = Path(project.conversion(wildcards.experiment, step)).parent if step.number else None
    score(
        benchmark,
        read_prompts(benchmark, Path()),
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.output.scores).parent,
        name=wildcards.benchmark,
        step=step,
        weights=describe_weights(evaluated_weights(start.base, start.transformer, tuned)),
    )

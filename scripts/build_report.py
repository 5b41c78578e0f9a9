"""Build the report of an experiment."""

from pathlib import Path

from omnitune.console import job
from omnitune.evaluation.prompts import read_prompts
from omnitune.paths import EvaluatedStep
from omnitune.project import Project
from omnitune.report.build import BenchmarkEntry, build_report

with job(snakemake.log[0]):
    protocols = Project.load(snakemake.config).benchmarks
    build_report(
        Path(snakemake.input.train).parent,
        Path(snakemake.input.validation[0]).parents[1],
        [BenchmarkEntry(name, protocol, read_prompts(protocol, Path())) for name, protocol in protocols.items()],
        Path(snakemake.output.html),
        evaluations={EvaluatedStep.parse(step): Path(folder) for step, folder in snakemake.params.evaluations.items()},
    )

"""Build the report of an experiment."""

from pathlib import Path

from omnitune.config import Benchmark, EvaluatedStep, ExperimentOptions
from omnitune.console import job
from omnitune.evaluation.benchmark import read_prompts
from omnitune.report.build import BenchmarkEntry, build_report

with job(snakemake.log[0]):
    protocols = {name: Benchmark(**settings) for name, settings in snakemake.params.benchmarks.items()}
    build_report(
        Path(snakemake.input.train).parent,
        Path(snakemake.input.summary).parents[1],
        [BenchmarkEntry(name, protocol, read_prompts(protocol, Path())) for name, protocol in protocols.items()],
        Path(snakemake.output.html),
        options=ExperimentOptions(**snakemake.params.options),
        evaluations={EvaluatedStep.parse(step): Path(folder) for step, folder in snakemake.params.evaluations.items()},
    )

"""Score a benchmark's images."""

from pathlib import Path

from omnitune.config import Benchmark, EvaluatedStep
from omnitune.console import job
from omnitune.evaluation.benchmark import read_prompts
from omnitune.evaluation.metrics import score

with job(snakemake.log[0]):
    settings = Benchmark(**snakemake.params.settings)
    score(
        settings,
        read_prompts(settings, Path()),
        [Path(path) for path in snakemake.input.parts],
        Path(snakemake.output.scores).parent,
        name=snakemake.wildcards.benchmark,
        step=EvaluatedStep.parse(snakemake.wildcards.step),
    )

"""`omnitune evaluate`, `report` and `vote`: images of a benchmark, what is said of them, and who prefers which."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from omnitune.cli.options import CPUS, Config, Ema, option
from omnitune.config import Benchmark, load_config
from omnitune.config.yaml_file import read_yaml
from omnitune.evaluation.foreign import as_imported
from omnitune.evaluation.model_files import fetch_judges
from omnitune.paths import COMPARISON, COMPARISON_TABLE, SCORES, VOTES, EvaluatedStep, file_stem
from omnitune.project import Project
from omnitune.stages import Experiment, compare_experiments, prepare_prompts

logger = logging.getLogger("omnitune")


def evaluate(
    config: Config,
    benchmark: Annotated[Path, option("benchmark", "Benchmark file (config/benchmarks/*.yml).")],
    step: Annotated[int, option("step", "Checkpoint to evaluate; 0 is the base.", min=0)] = 0,
    ema: Ema = False,
    lora_scale: Annotated[float, option("lora_scale", "Scale of its adapter.", min=0.01, max=100)] = 1.0,
    baseline: Annotated[
        str | None, option("baseline", "One of the benchmark's `baselines`, by its name, in place of a step.")
    ] = None,
    num_threads: Annotated[int, option("num_threads", "CPU threads.")] = CPUS,
) -> None:
    """Generate, judge and score a benchmark's images with the base (step 0), a converted checkpoint or a baseline."""
    if baseline is not None and (not baseline or step or ema or lora_scale != 1):
        raise ValueError("--baseline: needs a name, and has no --step, --ema or --lora_scale; take these out.")
    if ema and not step:
        raise ValueError("--ema: the base (--step 0) has no average; name a checkpoint with --step.")
    name = file_stem(benchmark)
    protocol = prepare_prompts(name, load_config(benchmark, Benchmark))
    row = EvaluatedStep(step, ema, lora_scale, baseline or "")
    evaluation = Experiment.alone(config).evaluation(name, protocol, row)
    fetch_judges(protocol)
    for part in range(protocol.parts):
        evaluation.generate(part, num_threads)
    for judge in protocol.judges:
        evaluation.judge(judge.name)
    evaluation.score()
    if protocol.export:
        evaluation.export()
    logger.info("scores: %s", evaluation.path(SCORES))


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Experiments of the workflow's config: one, or several, which are compared in one page. "
            "Or the name of a comparison there."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        option("config", "Without names: the options file of an experiment. With names: the workflow's config."),
    ] = None,
    benchmark: Annotated[
        list[Path] | None,
        option(
            "benchmark", "Without names: evaluated benchmark (config/benchmarks/*.yml); may be given several times."
        ),
    ] = None,
    output: Annotated[Path | None, option("output", "HTML file to write, if not the workflow's.")] = None,
) -> None:
    """Build the report of a trained experiment, or one over several: an HTML file, and tables beside it."""
    if names:
        if benchmark:
            raise ValueError("--benchmark: with names, benchmarks are those of the workflow's config.")
        logger.info("report: %s", _report_of(names, config or Path("config/config.yaml"), output))
        return
    if config is None:
        raise ValueError("name experiments of config/config.yaml, or an options file with --config.")
    named = {file_stem(path): load_config(path, Benchmark) for path in benchmark or []}
    protocols = {name: as_imported(name, found) for name, found in named.items()}
    logger.info("report: %s", Experiment.alone(config).report(protocols, output))


def _report_of(names: list[str], config: Path, output: Path | None) -> Path:
    """The page of an experiment, or of a comparison of several."""
    project = Project.load(read_yaml(config), str(config))
    title = "-".join(dict.fromkeys(names))
    known = project.comparisons if len(names) == 1 else {}
    compared = known[title] if title in known else project.compared(names)
    if list(compared) == [title]:
        folders = {step: Path(folder) for step, folder in project.evaluated_folders(title).items()}
        return Experiment.of(project, title).report(project.benchmarks, output, folders)
    page = output or Path(COMPARISON.format(comparison=title))
    compare_experiments(project, title, compared, page, page.parent / Path(COMPARISON_TABLE).name)
    return page


def vote(
    one: Annotated[
        str, typer.Argument(help="Row to compare: an experiment, or EXPERIMENT:STEP; without a step its last.")
    ],
    other: Annotated[str, typer.Argument(help="Row to compare it with; EXPERIMENT:0 is the base.")],
    benchmark: Annotated[Path, option("benchmark", "Evaluated benchmark (config/benchmarks/*.yml).")],
    port: Annotated[int, option("port", "Port of the page on this machine. 0: a free one.", min=0, max=65535)] = 0,
) -> None:
    """Let people choose between images of two rows, without saying whose: a page on 127.0.0.1; votes go to votes/.

    Ends when all pairs are judged, or at Ctrl-C; the next call shows what is left. Reports show the outcome.
    """
    from omnitune.evaluation.prompts import read_prompts
    from omnitune.evaluation.votes.server import serve_votes

    name = file_stem(benchmark)
    protocol = as_imported(name, load_config(benchmark, Benchmark))
    inputs = {prompt.key: prompt.input_images for prompt in read_prompts(protocol, Path())}
    typer.echo(serve_votes(one, other, name, inputs, Path(VOTES.format(benchmark=name)), port))

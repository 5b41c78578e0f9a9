"""Read what a run has left behind, as plain values for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from omnitune.config import Benchmark, ExperimentOptions, evaluation_folders
from omnitune.evaluation.prompts import Prompt, protocol_fingerprint
from omnitune.evaluation.results import read_generations, read_scores
from omnitune.evaluation.votes.votes import Vote, read_votes
from omnitune.evaluation.weights import EvaluatedWeights, describe_weights
from omnitune.io.files import portable
from omnitune.io.kept import Conversion, Kept, Metrics, Reported, Start, Summary, Trained, read_kept, read_kept_lines
from omnitune.paths import BASE, STARTS_FILE, VOTES, EvaluatedStep
from omnitune.pretrained.weights import check_weights
from omnitune.report.data import read_encoded, read_shards
from omnitune.report.training import Sample, read_samples

SHOWN_REJECTED = 100
SIDE_BY_SIDE = 6  # rows of images


@dataclass(frozen=True)
class BenchmarkEntry:
    """A benchmark to report on: its name, protocol and prompts."""

    name: str
    benchmark: Benchmark
    prompts: Sequence[Prompt]


@dataclass(frozen=True)
class Evaluation:
    """A benchmark with the scores and generations of each evaluated step, the base first, and people's votes."""

    entry: BenchmarkEntry
    folders: dict[EvaluatedStep, Path]
    scores: dict[EvaluatedStep, dict[str, Any]]
    generations: dict[EvaluatedStep, dict[str, dict[str, Any]]]
    votes: Sequence[Vote] = ()

    @property
    def steps(self) -> list[EvaluatedStep]:
        """What was evaluated, in order."""
        return sorted(self.scores)

    @property
    def last(self) -> EvaluatedStep:
        """The newest step, as it was trained."""
        return max(step for step in self.scores if step.is_plain)

    @property
    def averaged(self) -> EvaluatedStep | None:
        """The average of the newest step's weights, where there is one."""
        return next((step for step in self.scores if step.ema and step.number == self.last.number), None)

    @property
    def shown(self) -> list[EvaluatedStep]:
        """What is set side by side: all steps, or of many the base, the baselines, the newest step and its average."""
        few = (BASE, *self.baselines, self.last, self.averaged)
        return [step for step in self.steps if len(self.steps) <= SIDE_BY_SIDE or step in few]

    @property
    def baselines(self) -> list[EvaluatedStep]:
        """Other weights beside the base and the checkpoints."""
        return [step for step in self.steps if step.baseline]

    @property
    def checkpoints(self) -> list[EvaluatedStep]:
        """What the experiment has trained."""
        return [step for step in self.steps if step.number]

    def image(self, step: EvaluatedStep, key: str) -> Path | None:
        """The file of a prompt's image; None where it failed."""
        name = self.generations[step][key]["image"]
        return None if name is None else self.folders[step] / str(name)

    def missing(self, step: EvaluatedStep) -> int:
        """How many images failed, and count for nothing."""
        return sum(row["image"] is None for row in self.generations[step].values())


@dataclass(frozen=True)
class Run:
    """Everything that the report shows of an experiment; empty where a stage left nothing."""

    name: str
    options: dict[str, Any]
    train: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    rejected: list[dict[str, Any]]
    conversions: dict[str, dict[str, Any]]
    shards: list[dict[str, Any]] = field(default_factory=list)
    encoded: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)  # files of weights and images, whose hashes were found right


def collect(
    experiment: Path,
    prepared: Path,
    benchmarks: Sequence[BenchmarkEntry],
    evaluations: Mapping[EvaluatedStep, Path] | None = None,
) -> Run:
    """Reads an experiment's folder, its prepared data and the scores of the benchmarks; arguments as of `build_report`.

    Raises:
        ValueError: where options.yml, or the scores of a step, are missing, or where steps differ in their protocol.
    """
    options = ExperimentOptions.load(_required(experiment / "options.yml"))
    validation = prepared / "validation"
    evaluations = evaluation_folders(experiment, options) if evaluations is None else evaluations
    conversions = {
        path.parent.relative_to(experiment).as_posix(): read_kept(path, Conversion)
        for step in sorted({step.number for step in evaluations})
        for path in sorted(experiment.glob(f"checkpoint-{step}/transformer*/conversion.json"))
    }
    train = _json(experiment / "train.json", Trained)
    for folder, conversion in conversions.items():
        _require_checkpoint(experiment / folder, conversion, train)
    found = [_evaluation(evaluations, entry) for entry in benchmarks]
    return Run(
        name=options.name,
        options=options.model_dump(mode="json"),
        train=train,
        metrics=_rows(experiment / "logs" / "metrics.jsonl", Metrics),
        summary=_json(validation / "summary.json", Summary),
        rejected=_rows(validation / "rejected.jsonl", Kept, SHOWN_REJECTED),
        conversions=conversions,
        shards=read_shards(prepared / "shards" / "index.parquet"),
        encoded=read_encoded(prepared / "encoded") if options.data.encode else [],
        samples=read_samples(experiment / "logs" / "samples"),
        starts=_rows(experiment / "logs" / STARTS_FILE, Start),
        evaluations=found,
        checked={
            "weights": check_weights(_loaded_weights([experiment / folder for folder in conversions], found)),
            "images": sum(len(rows) for evaluation in found for rows in evaluation.generations.values()),
        },
    )


def _loaded_weights(conversions: Sequence[Path], evaluations: Sequence[Evaluation]) -> list[Path]:
    """Folders of weights that were converted or evaluated, as far as they are still there."""
    names = [scores["weights"] for evaluation in evaluations for scores in evaluation.scores.values()]
    evaluated = [folder for known in names for folder in _weights_of(known).folders]
    return [folder for folder in dict.fromkeys([*conversions, *evaluated]) if folder.is_dir()]


def _weights_of(names: Mapping[str, Any]) -> EvaluatedWeights:
    transformer, lora = (Path(names[part]) if names[part] else None for part in ("transformer", "lora"))
    return EvaluatedWeights(Path(names["base"]), transformer, lora, names.get("lora_scale", 1.0))


def _evaluation(evaluations: Mapping[EvaluatedStep, Path], entry: BenchmarkEntry) -> Evaluation:
    own = (found for found in sorted(evaluations.items()) if entry.benchmark.evaluates(found[0]))
    folders = {step: folder / entry.name for step, folder in own}
    scores = {step: read_scores(folder, Reported) for step, folder in folders.items()}
    protocols = {str(step): found["protocol"] for step, found in scores.items()}
    if len(set(protocols.values())) > 1:
        raise ValueError(
            f"benchmark {entry.name!r}: its steps were evaluated under different protocols ({protocols}), so that "
            "their scores cannot be compared. Evaluate all steps again."
        )
    for step, folder in folders.items():
        _require_present(folder, scores[step], entry, step)
    generations = {step: read_generations(folder, scores[step]) for step, folder in folders.items()}
    for step, rows in generations.items():
        _require_instructions(folders[step], rows, entry)
    return Evaluation(entry, folders, scores, generations, read_votes(Path(VOTES.format(benchmark=entry.name))))


def _require_checkpoint(folder: Path, conversion: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Raises ValueError where weights were converted from another checkpoint than the one that train.json names."""
    found = conversion.get("checkpoint_sha256")
    step = folder.parent.name.removeprefix("checkpoint-")
    if found and train.get("states", {}).get(step, found) != found:
        raise ValueError(
            f"{folder}: was converted from another checkpoint than train.json names. Convert again: snakemake --cores "
            f"2 --force {folder}/conversion.json"
        )


def _require_present(folder: Path, scores: Mapping[str, Any], entry: BenchmarkEntry, step: EvaluatedStep) -> None:
    """Raises ValueError where scores are of a protocol or of weights that are no longer those that are there."""
    fix = f"Evaluate again: snakemake --cores 2 --force {folder}/parts/*.jsonl"
    if scores["protocol"] != protocol_fingerprint(entry.benchmark, entry.prompts):
        raise ValueError(f"{folder}: was evaluated under another protocol than benchmark {entry.name!r} is now. {fix}")
    names = scores["weights"]
    now = entry.benchmark.baselines.get(step.baseline)
    if now is not None and portable(Path(now)) not in (names["base"], names["transformer"]):
        raise ValueError(f"{folder}: was evaluated with another folder than baselines.{step.baseline} names now. {fix}")
    weights = _weights_of(names)
    there = all(path.is_dir() for path in (weights.base, weights.transformer, weights.lora) if path)
    if there and describe_weights(weights) != names:
        raise ValueError(f"{folder}: was evaluated with other weights than are there now ({step.label}). {fix}")


def _require_instructions(folder: Path, rows: Mapping[str, Mapping[str, Any]], entry: BenchmarkEntry) -> None:
    """Raises ValueError where an image was drawn for another instruction than the one that is shown with it."""
    for prompt in entry.prompts:
        if rows[prompt.key].get("instruction") != prompt.instruction:
            raise ValueError(
                f"{folder}: the image of {prompt.key!r} was drawn for another instruction than the prompt has. "
                f"Evaluate again: snakemake --cores 2 --force {folder}/parts/*.jsonl"
            )


def _required(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: is missing; the report needs it. Run the stage that writes it.")
    return path


def _json(path: Path, model: type[Kept]) -> dict[str, Any]:
    return read_kept(path, model) if path.is_file() else {}


def _rows(path: Path, model: type[Kept], limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, at most `limit`; a last line that a kill has cut is left out."""
    return list(islice(read_kept_lines(path, model, whole=False), limit)) if path.is_file() else []

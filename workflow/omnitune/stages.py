"""One driver per stage of an experiment: cli/ and scripts/ both call it.

Validation and shards, which know no experiment, take paths alone and have none here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from omnitune.config import Benchmark, ExperimentOptions, StartingWeights, evaluation_folders, starting_weights
from omnitune.config.affects import keys_affecting
from omnitune.distributed.processes import Topology
from omnitune.evaluation.weights import (
    EvaluatedWeights,
    baseline_files,
    baseline_weights,
    describe_weights,
    evaluated_weights,
)
from omnitune.io.files import write_text
from omnitune.io.store import Store
from omnitune.paths import (
    ANSWERS,
    BASE,
    ENCODED,
    EVALUATION,
    EXPERIMENT,
    INDEX,
    JUDGEMENTS,
    OFFICIAL,
    PART,
    PREPARED,
    REPORT,
    VARIANT,
    EvaluatedStep,
    conversion_file,
    format_of,
)
from omnitune.project import Project
from omnitune.training.inputs import TrainingFiles

if TYPE_CHECKING:
    from omnitune.encoding.encode import EncodingFiles

# What loads torch is imported where it is used: `omnitune --help` and errors in options need not wait for it, and a job
# has set up its log before libraries warn.


@dataclass(frozen=True)
class Experiment:
    """An experiment, and where the workflow keeps what its stages read and write.

    Attributes:
        options: what it is.
        config: the options file.
        start: the weights that it starts from.
    """

    options: ExperimentOptions
    config: Path
    start: StartingWeights

    @classmethod
    def of(cls, project: Project, name: str) -> Self:
        """One of the workflow's."""
        config = _variant_file(project, name) if name in project.variants else project.options_files[name]
        return cls(project.experiment(name), config, project.starts[name])

    @classmethod
    def alone(cls, config: Path) -> Self:
        """That of an options file, whether or not the workflow's config names it; raises ConfigError."""
        options = ExperimentOptions.load(config)
        return cls(options, config, starting_weights(options, {options.name: options}))

    def path(self, template: str, **names: Any) -> Path:
        """A template of omnitune.paths, filled in."""
        known = {"dataset": self.options.data.dataset, "model": self.start.model, "experiment": self.options.name}
        return Path(template.format(**known, **names))

    def encoding_files(self, **others: Path | None) -> "EncodingFiles":
        """What its encoding reads and writes; `others` in place of the workflow's, but for None."""
        from omnitune.encoding.encode import EncodingFiles

        files = EncodingFiles(self.config, self.start.base, self.path(ENCODED))
        return replace(files, **_given(others))

    def training_files(self, **others: Path | None) -> TrainingFiles:
        """What its training reads and writes; `others` in place of the workflow's, but for None."""
        files = TrainingFiles(
            config=self.config,
            base=self.start.base,
            transformer=self.start.transformer,
            index=self.path(INDEX),
            encoded=self.path(ENCODED),
            output=self.path(EXPERIMENT),
        )
        return replace(files, **_given(others))

    def encode(self, shards: Sequence[Path], topology: Topology, store: Store | None) -> None:
        """Encodes shards, see omnitune.encoding.encode."""
        from omnitune.encoding.encode import encode

        encode(self.options, self.encoding_files(), shards, topology, store)

    def train(self, *, nodes: int, gpus_per_node: int, threads: int) -> None:
        """Trains inside of a job, see omnitune.launching.job."""
        from omnitune.launching.job import launch_job

        files = self.training_files()
        launch_job(self.options, files, nodes=nodes, gpus_per_node=gpus_per_node, threads=threads)

    def evaluation(self, benchmark_name: str, benchmark: Benchmark, step: EvaluatedStep) -> "Evaluation":
        """That of a step with a benchmark; BASE is what the experiment starts from."""
        name, lora = self.options.name, self.options.train.lora_ft
        if step.baseline:
            if step.baseline not in benchmark.baselines:
                known = ", ".join(benchmark.baselines) or "none"
                raise ValueError(f"{benchmark_name}: baselines: {step.baseline!r} is not there; known: {known}.")
            folder = Path(benchmark.baselines[step.baseline])
            baseline_files(folder, f"benchmark {benchmark_name!r}: baselines.{step.baseline}")
            return Evaluation(benchmark_name, benchmark, step, baseline_weights(self.start.base, folder), name)
        if step.lora_scale != 1 and not (lora and step.number):
            raise ValueError(
                f"LoRA scale {step.lora_scale:g}: {name!r} has no adapter at step {step.number}. Leave it out."
            )
        tuned = Path(conversion_file(name, step, lora)).parent if step.number else None
        weights = evaluated_weights(self.start.base, self.start.transformer, tuned, step.lora_scale)
        return Evaluation(benchmark_name, benchmark, step, weights, name)

    def report(
        self,
        benchmarks: Mapping[str, Benchmark],
        output: Path | None = None,
        evaluations: Mapping[EvaluatedStep, Path] | None = None,
    ) -> Path:
        """Builds the report and returns its path, see omnitune.report.build.

        Args:
            benchmarks: what it was evaluated with, by name.
            output: the .html file, if not the workflow's.
            evaluations: folder of each evaluated step, if it is not known what else the workflow has evaluated.
        """
        from omnitune.evaluation.prompts import read_prompts
        from omnitune.report.build import BenchmarkEntry, build_report

        folder = self.path(EXPERIMENT)
        if evaluations is None:
            shared = not (folder / "evaluation" / "0").is_dir()
            evaluations = evaluation_folders(folder, self.options, shared=shared)
            if not evaluations[BASE].is_dir():
                evaluations[BASE] = self._evaluated_elsewhere(BASE) or evaluations[BASE]
            for name in {name for benchmark in benchmarks.values() for name in benchmark.baselines}:
                step = EvaluatedStep(0, baseline=name)
                own = folder / "evaluation" / str(step)
                evaluations[step] = own if own.is_dir() else self._evaluated_elsewhere(step) or own
        entries = [
            BenchmarkEntry(name, protocol, read_prompts(protocol, Path())) for name, protocol in benchmarks.items()
        ]
        return build_report(folder, self.path(PREPARED), entries, output or self.path(REPORT), evaluations=evaluations)

    def _evaluated_elsewhere(self, step: EvaluatedStep) -> Path | None:
        """The evaluation of the base or a baseline by another experiment that starts from the same weights."""
        ours = keys_affecting(self.options.model, "base")
        for found in sorted(self.path(EXPERIMENT).parent.glob(f"*/evaluation/{step}")):
            options = found.parents[1] / "options.yml"
            if options.is_file() and keys_affecting(ExperimentOptions.load(options).model, "base") == ours:
                return found
        return None


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of some weights with a benchmark.

    Attributes:
        name: the benchmark's.
        benchmark: its protocol.
        step: whose weights these are.
        weights: where they lie.
        experiment: the experiment's name.
    """

    name: str
    benchmark: Benchmark
    step: EvaluatedStep
    weights: EvaluatedWeights
    experiment: str

    def path(self, template: str, **names: Any) -> Path:
        """A template of omnitune.paths, filled in."""
        return Path(template.format(experiment=self.experiment, step=self.step, benchmark=self.name, **names))

    @property
    def parts(self) -> Sequence[Path]:
        """What `generate` leaves, for all parts."""
        return [self.path(PART, part=part) for part in range(self.benchmark.parts)]

    def generate(self, part: int, threads: int) -> None:
        """Draws a part of the images and measures its held-out losses."""
        from omnitune.evaluation.generate import generate_part

        label, folder = f"{self.name} {self.experiment}-{self.step}", self.path(EVALUATION)
        generate_part(self.benchmark, self.weights, folder, part=part, threads=threads, name=label)

    @property
    def judgements(self) -> dict[str, Path]:
        """What `judge` leaves, by the name of the judge."""
        return {judge.name: self.path(JUDGEMENTS, judge=judge.name) for judge in self.benchmark.judges}

    def judge(self, name: str) -> None:
        """Asks a judge about the images of all parts."""
        from omnitune.evaluation.judges.judgements import judge_images
        from omnitune.evaluation.prompts import protocol_fingerprint, read_prompts
        from omnitune.evaluation.scoring import read_parts

        prompts, judge = read_prompts(self.benchmark, Path()), self.benchmark.judge(name)
        protocol = protocol_fingerprint(self.benchmark, prompts)
        rows = read_parts(self.parts, prompts, protocol, describe_weights(self.weights))
        answers = Path(ANSWERS.format(judge=name))
        judge_images(judge, prompts, rows, self.path(EVALUATION), self.judgements[name], answers)

    def score(self) -> None:
        """Measures the images of all parts."""
        from omnitune.evaluation.prompts import read_prompts
        from omnitune.evaluation.scoring import score

        prompts, folder = read_prompts(self.benchmark, Path()), self.path(EVALUATION)
        weights = describe_weights(self.weights)
        facts: dict[str, Any] = {"name": self.name, "step": self.step, "weights": weights}
        score(self.benchmark, prompts, self.parts, folder, judgements=self.judgements, **facts)

    def export(self) -> None:
        """Lays out the images for the scorer of the prompts' format, as the benchmark asks."""
        from omnitune.evaluation.official import export_images
        from omnitune.evaluation.prompts import read_prompts

        prompts, output = read_prompts(self.benchmark, Path()), self.path(OFFICIAL)
        method = f"{self.experiment}-{self.step}"
        export_images(self.benchmark, prompts, self.path(EVALUATION), output, method)


def prepare_prompts(name: str, benchmark: Benchmark) -> Benchmark:
    """The benchmark with its prompts in our format, which are written anew where they are in another."""
    from omnitune.evaluation.foreign import as_imported, import_prompts, is_foreign

    imported = as_imported(name, benchmark)
    if is_foreign(benchmark):
        import_prompts(benchmark, Path(imported.prompts))
    return imported


def prepare_base(project: Project, model: str, folder: Path) -> None:
    """Makes the folder of a base model, see omnitune.pretrained.prepare."""
    from omnitune.pretrained.prepare import prepare_pretrained

    prepare_pretrained(project.base_source(model), folder, cache_dir=project.download_cache(model))


def convert_checkpoint(
    output: Path, transformer: Path, *, base: Path | None, dtype: str | None, max_shard_size: str, rank: int
) -> None:
    """Converts the checkpoint in whose folder `output` lies, as it was trained, see omnitune.conversion.export.

    Args:
        output: experiments/{experiment}/checkpoint-{step}/{weights}, whose name says whether it is the average, and the
            format.
        transformer: folder of the transformer that training started from.
        base: folder of the base pipeline, for the format `pipeline`.
        dtype, max_shard_size, rank: as in the section `convert` of the options.
    """
    from omnitune.conversion.export import convert
    from omnitune.conversion.write import Target

    options = ExperimentOptions.load(output.parents[1] / "options.yml")
    target = Target(format_of(output.name), dtype, max_shard_size, base, rank)
    convert(options, output.parent, output, transformer, ema="_ema" in output.name, target=target)


def compare_experiments(
    project: Project, title: str, compared: Mapping[str, Mapping[str, Any]], page: Path, table: Path
) -> None:
    """Compares experiments, see omnitune.report.comparison.

    Args:
        project: which they are of.
        title: what the page calls them.
        compared: by name of the experiment, the keys in which they differ; as in `Project.comparisons`.
        page, table: the .html and the .csv file to write.
    """
    from omnitune.evaluation.prompts import read_prompts
    from omnitune.report.build import BenchmarkEntry
    from omnitune.report.collect import collect
    from omnitune.report.comparison import Compared, build_comparison

    entries = [BenchmarkEntry(name, found, read_prompts(found, Path())) for name, found in project.benchmarks.items()]
    runs = []
    for name, keys in compared.items():
        experiment = Experiment.of(project, name)
        folders = {step: Path(folder) for step, folder in project.evaluated_folders(name).items()}
        run = collect(experiment.path(EXPERIMENT), experiment.path(PREPARED), entries, folders)
        runs.append(Compared(keys, run, by_values=name in project.variants))
    build_comparison(title, runs, page, table)


def _variant_file(project: Project, name: str) -> Path:
    """The options of a variant as a file, which the processes of its jobs read; written where it is not there yet."""
    path = Path(VARIANT.format(experiment=name))
    origin = f"# Written from {project.options_files[name]} and the sweep of the workflow's config: change these.\n"
    text = origin + yaml.safe_dump(project.experiment(name).model_dump(mode="json"), sort_keys=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def _given(others: Mapping[str, Path | None]) -> dict[str, Any]:
    return {name: path for name, path in others.items() if path is not None}

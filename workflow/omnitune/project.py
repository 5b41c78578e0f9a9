"""What the workflow runs: experiments, benchmarks and data sets, checked together; which phase needs which."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from omnitune.config import Benchmark, ExperimentOptions, StartingWeights, WorkflowConfig, agreement, starting_weights
from omnitune.config.base import check_config
from omnitune.config.data import DataOptions
from omnitune.config.experiment.model import ModelOptions
from omnitune.config.experiment.variants import differing_options, variants_of
from omnitune.config.mixtures.sources import Source, sources_of
from omnitune.config.workflow import Cluster
from omnitune.encoding.groups import group_shards
from omnitune.errors import ConfigError
from omnitune.evaluation.foreign import as_imported, is_foreign, source_files
from omnitune.evaluation.model_files import local_model_files
from omnitune.evaluation.prompts import Prompt, prompt_images, read_prompts
from omnitune.evaluation.weights import EvaluatedWeights, baseline_files, baseline_weights
from omnitune.io.storage import is_url
from omnitune.io.store import Store
from omnitune.paths import (
    BASE,
    DEMO,
    ENCODED_GROUP,
    EVALUATIONS,
    FORMATS,
    MANIFESTS,
    EvaluatedStep,
    adapter_file,
    conversion_file,
    group_name,
    path_hint,
    require_safe,
    weights_name,
)
from omnitune.pretrained.files import local_files
from omnitune.pretrained.transformer import require_transformer, transformer_files
from omnitune.training.architecture import differing_keys


@dataclass(frozen=True)
class Phase:
    """A piece of the workflow that closes: the rule that does it, a checkpoint of Snakemake, and its wildcards.

    What stands behind it sees only what it has come to, and is not run again where that is what it was.
    """

    rule: str
    wildcards: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, rule: str, **wildcards: object) -> "Phase":
        """The same, with wildcards by name."""
        return cls(rule, tuple((name, str(value)) for name, value in wildcards.items()))

    def __getitem__(self, wildcard: str) -> str:
        return dict(self.wildcards)[wildcard]


Phases = tuple[Phase, ...]


@dataclass(frozen=True, eq=False)
class Project:
    """What the workflow runs, by name.

    A method that is named after what is done, such as `trained`, gives the phases that lead there, each after those
    that it needs.

    Attributes:
        experiments: options by experiment name.
        options_files: options file by experiment name.
        benchmarks: protocols by benchmark name, sorted; prompts in another format than ours where they are imported.
        foreign: those of them whose prompts are in another format, as their files say it.
        starts: starting weights by experiment name.
        variants: of a sweep, by experiment name: its keys and their values.
        swept: name of the experiment that they are variants of; None without a sweep.
        reports: names of experiments that are compared, by the comparison's name.
        shards_url: where tars are written, if not beside their index.
        store: what projects share, if anything.
        cluster: what jobs may ask a cluster for.
    """

    experiments: dict[str, ExperimentOptions]
    options_files: dict[str, Path]
    benchmarks: dict[str, Benchmark]
    foreign: dict[str, Benchmark]
    starts: dict[str, StartingWeights]
    variants: dict[str, dict[str, Any]]
    swept: str | None
    reports: dict[str, list[str]]
    shards_url: str | None
    store: Store | None
    cluster: Cluster

    @classmethod
    def load(cls, config: Mapping[str, Any], where: str = "config/config.yaml") -> "Project":
        """Reads every file that the workflow's config names; raises ConfigError for whatever is wrong in any."""
        workflow = check_config(dict(config), WorkflowConfig, where)
        for path, times in Counter(map(Path, workflow.experiments)).items():
            if times > 1:
                raise ConfigError(f"{where}: experiments: {path} is listed twice. Take one of the two out.")
        found = [(ExperimentOptions.load(path), Path(path)) for path in workflow.experiments]
        swept, made = variants_of(workflow.sweep, ExperimentOptions, where) if workflow.sweep else (None, {})
        if workflow.sweep:
            base = workflow.sweep.options
            found += [(options.with_steps(base), Path(base)) for options, _ in made.values()]
        experiments, files = agreement.by_name(found)
        named = agreement.read_benchmarks(workflow.benchmarks, where)
        benchmarks = {name: as_imported(name, benchmark) for name, benchmark in named.items()}
        foreign = {name: benchmark for name, benchmark in named.items() if is_foreign(benchmark)}
        starts = {name: starting_weights(options, experiments) for name, options in experiments.items()}
        variants = {name: keys for name, (_, keys) in made.items()}
        names, store = (variants, swept, workflow.reports), Store.of(workflow.store)
        project = cls(experiments, files, benchmarks, foreign, starts, *names, workflow.shards_url, store, workflow)
        agreement.check_reports(workflow.reports, experiments, swept, where)
        agreement.check_judges(benchmarks)
        agreement.check_baselines(benchmarks, starts)
        agreement.check_base_models(starts, files)
        agreement.check_datasets(experiments, files)
        for name in experiments:
            project.trained(name)  # raises for a circle through adapters
        return project

    def check_cluster(self) -> None:
        """Raises ConfigError for a training that the cluster's nodes cannot be shared by."""
        agreement.check_nodes(self.experiments, self.options_files, self.cluster)

    # ------------------------------------------------------------------ what there is

    @cached_property
    def sources(self) -> dict[str, dict[str, Source]]:
        """The sources of each data set, by name."""
        # Of each experiment, as the places that sources may lie at are its own, and once of those that allow the same.
        data = {(o.data.dataset, *(o.data.source_roots or ())): o.data for o in self.experiments.values()}
        read = {found.dataset: sources_of(found) for found in data.values()}
        return {name: {source.name: source for source in read[name]} for name in sorted(read)}

    @property
    def models(self) -> list[str]:
        """Names of all base models."""
        return sorted({start.model for start in self.starts.values()})

    @property
    def comparisons(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Experiments that are compared, by the comparison's name, each with the keys in which they differ."""
        found = {self.swept: self.variants} if self.swept else {}
        return found | {name: self.compared(experiments) for name, experiments in self.reports.items()}

    def compared(self, experiments: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Each of some experiments with the keys in which they differ; ConfigError for one that is not there."""
        return differing_options({name: self.experiment(name) for name in experiments})

    def experiment(self, name: str) -> ExperimentOptions:
        """Options of an experiment; ConfigError, with the known names, for one that is not in the config."""
        if name not in self.experiments:
            raise ConfigError(f"experiment {name!r} is not in the config; {agreement.nearest(name, self.experiments)}")
        return self.experiments[name]

    def dataset(self, name: str) -> DataOptions:
        """Data options of a prepared data set, of those keys that its experiments agree in."""
        for options in self.experiments.values():
            if options.data.dataset == name:
                return options.data
        raise ConfigError(f"data set {name!r} belongs to no experiment; {agreement.nearest(name, self.sources)}")

    def base_source(self, model: str) -> ModelOptions:
        """The options that say how a base model is made."""
        for start in self.starts.values():
            if start.model == model:
                return start.source
        known = agreement.nearest(model, self.models)
        raise ConfigError(f"resources/pretrained/{model}: no experiment starts from this; {known}")

    # What is an input of a job by its own name is checked where it is asked for: others may have named it.

    def sample_files(self, dataset: str, source: str) -> list[str]:
        """The .jsonl files of a source that are no URLs; ValueError for a name that is not safe."""
        found = self.sources[dataset][source]
        files = [str(path) for path in found.files if not is_url(path)]
        for path in files:
            require_safe(path, f"{found.mixture}: source {source!r}")
        return files

    def base_files(self, model: str) -> list[str]:
        """The files of a base model that is a local folder; ValueError for unsafe names and links that lead out."""
        return [str(path) for path in local_files(self.base_source(model).pretrained_model_path)]

    def prompts(self, benchmark: str) -> list[Prompt]:
        """The prompts of a benchmark; ValueError for one that is wrong, or whose images have unsafe names."""
        config = self.benchmarks[benchmark]
        try:
            prompts = read_prompts(config, Path())
        except ValueError as error:
            raise ConfigError(f"benchmark {benchmark!r}: {error}") from None
        for path in prompt_images(prompts):
            require_safe(path, config.prompts)
        return prompts

    @cache  # noqa: B019  (a project lives as long as its process)
    def prompt_sources(self, benchmark: str) -> list[str]:
        """The files of prompts in another format than ours; ValueError for what is wrong in them, or unsafe names."""
        config = self.foreign[benchmark]
        try:
            files = source_files(config)
        except ValueError as error:
            raise ConfigError(f"benchmark {benchmark!r}: {error}") from None
        for path in files:
            require_safe(path, config.prompts)
        return [str(path) for path in files]

    def measuring_models(self, benchmark: str) -> list[str]:
        """Files of the models that a benchmark's measures need, where these are folders; ValueError for unsafe ones."""
        files = [str(path) for path in local_model_files(self.benchmarks[benchmark])]
        for path in files:
            require_safe(path, f"benchmark {benchmark!r}: measures")
        return files

    def baseline_files(self, benchmark: str, name: str) -> list[str]:
        """The files of a benchmark's baseline; ValueError for what is not whole, or unsafe names."""
        where = f"benchmark {benchmark!r}: baselines.{name}"
        files = baseline_files(self._baseline(benchmark, name), where)
        for path in files:
            require_safe(path, where)
        return [str(path) for path in files]

    def _baseline(self, benchmark: str, name: str) -> Path:
        known = self.benchmarks[benchmark].baselines
        if name not in known:
            near = agreement.nearest(name, known)
            raise ConfigError(f"benchmark {benchmark!r}: baselines: none is called {name!r}; {near}")
        return Path(known[name])

    def loaded(self, experiment: str, step: EvaluatedStep, benchmark: str) -> list[Path]:
        """Folders of what a baseline is drawn with, or other steps before training; the first is the transformer's."""
        start = self.starts[experiment]
        if step.baseline:
            return baseline_weights(start.base, self._baseline(benchmark, step.baseline)).folders
        return EvaluatedWeights(start.base, start.transformer, None).folders

    def labels(self, benchmark: str) -> list[str]:
        """Files of people's scores of a benchmark's judges; ValueError for one that is not there, or an unsafe name."""
        found = [judge.labels for judge in self.benchmarks[benchmark].judges if judge.labels]
        for path in found:
            require_safe(path, f"benchmark {benchmark!r}: judges: labels")
            if not Path(path).is_file():
                raise ConfigError(f"benchmark {benchmark!r}: judges: labels: {path} does not exist{path_hint(path)}.")
        return sorted(set(found))

    def download_cache(self, model: str) -> str | None:
        """Where a base model is downloaded to; None for the library's own place."""
        caches = [options.cache_dir for name, options in self.experiments.items() if self.starts[name].model == model]
        return next(filter(None, caches), None)

    def tokenizer_model(self, dataset: str) -> str:
        """The base model whose tokenizer counts a data set's tokens; whatever the experiments' order."""
        return min(
            self.starts[name].model for name, options in self.experiments.items() if options.data.dataset == dataset
        )

    def evaluations(self, experiment: str) -> dict[EvaluatedStep, tuple[str, EvaluatedStep]]:
        """Whose evaluation of which step each of an experiment's is: its own, but for a base that is evaluated already.

        BASE is what the experiment started from: where that is an evaluated checkpoint of another configured one, no
        second evaluation is made. Of those that start from the same weights, the first by name evaluates them.
        Baselines of the benchmarks are evaluated by the first of those that have the same base model.
        """
        found = {step: (experiment, step) for step in (BASE, *self.experiments[experiment].evaluated)}
        start = self.starts[experiment].transformer
        found[BASE] = min(name for name in self.experiments if self.starts[name].transformer == start), BASE
        upstream = self.starts[experiment].upstream
        if upstream and upstream[0] in self.experiments and upstream[1] in self.experiments[upstream[0]].evaluated:
            found[BASE] = upstream
        model = self.starts[experiment].model
        owner = min(name for name in self.experiments if self.starts[name].model == model)
        names = dict.fromkeys(name for benchmark in self.benchmarks.values() for name in benchmark.baselines)
        return found | {step: (owner, step) for step in (EvaluatedStep(0, baseline=name) for name in names)}

    def evaluated(self, experiments: Iterable[str]) -> list[tuple[str, EvaluatedStep, str]]:
        """Owner, step and benchmark of each evaluation of some experiments, of which two may have one in common."""
        found = {evaluation for name in experiments for evaluation in self.evaluations(name).values()}
        return [
            (owner, step, name)
            for owner, step in sorted(found)
            for name, benchmark in self.benchmarks.items()
            if benchmark.evaluates(step)
        ]

    def evaluated_folders(self, experiment: str) -> dict[EvaluatedStep, str]:
        """Where each of an experiment's evaluations lies."""
        found = self.evaluations(experiment)
        return {
            step: EVALUATIONS.format(experiment=owner, step=evaluated) for step, (owner, evaluated) in found.items()
        }

    def conversion(self, experiment: str, step: EvaluatedStep, format: str = FORMATS[0]) -> str:
        """conversion.json of an experiment's converted checkpoint or average."""
        return conversion_file(experiment, step, self.experiments[experiment].train.lora_ft, format)

    def exports(self, experiment: str) -> list[tuple[EvaluatedStep, str]]:
        """Step and format of each conversion of an experiment."""
        options = self.experiments[experiment]
        trained = [step for step in options.evaluated if step.lora_scale == 1]  # others are the same weights
        return [(step, format) for step in trained for format in options.convert.formats]

    def starting_conversion(self, experiment: str) -> str | None:
        """conversion.json of the weights that an experiment starts from; None where these are a base model's."""
        upstream = self.starts[experiment].upstream
        return conversion_file(*upstream, lora=False) if upstream else None

    def starting_files(self, experiment: str) -> list[str]:
        """What says which weights an experiment starts from, if not its base's; ValueError for wrong ones."""
        conversion, path = self.starting_conversion(experiment), self.experiments[experiment].model.transformer_path
        if conversion or not path:
            return [conversion] if conversion else []
        where = f"{self.options_files[experiment]}: model.transformer_path"
        config = require_transformer(Path(path), where)
        asked = self.experiments[experiment].model.arch_opt
        differing = differing_keys(asked, config) if asked else []
        if differing:
            raise ConfigError(f"{where}: {path} has another {', '.join(differing)} than model.arch_opt.")
        files = [str(file) for file in transformer_files(Path(path))]
        for file in files:
            require_safe(file, where)
        return files

    def starting_adapter(self, experiment: str) -> str | None:
        """The file that says which adapter an experiment starts from; None without one."""
        options = self.experiments[experiment]
        if options.adapter_upstream:
            return conversion_file(*options.adapter_upstream, lora=True)
        if not options.train.lora_path:
            return None
        path = adapter_file(options.train.lora_path)
        require_safe(path, f"{self.options_files[experiment]}: train.lora_path")
        return str(path)

    def groups(self, dataset: str) -> dict[tuple[str, int], list[str]]:
        """Names of a validated data set's shards, by source and number of the group that they are encoded in."""
        manifests = Path(MANIFESTS.format(dataset=dataset)).glob("*.jsonl")
        per_group = self.dataset(dataset).shards_per_encoding
        return {key: [path.stem for path in paths] for key, paths in group_shards(manifests, per_group).items()}

    def encoder(self, dataset: str, model: str) -> str:
        """An experiment that trains on an encoding; all of them agree in what it depends on."""
        for name, options in self.experiments.items():
            if options.data.dataset == dataset and self.starts[name].model == model:
                return name
        raise ConfigError(f"prepared/{dataset}/encoded/{model}: no experiment trains on this data from this model.")

    def encodings(self, dataset: str, model: str) -> list[str]:
        """The encoded groups of a validated data set."""
        return [
            ENCODED_GROUP.format(dataset=dataset, model=model, source=source, group=group_name(group))
            for source, group in self.groups(dataset)
        ]

    # ------------------------------------------------------------------ phases

    def drawn(self, files: Iterable[str | Path]) -> Phases:
        """Before files that the demo draws."""
        needed = any(PurePosixPath(DEMO) in PurePosixPath(str(file)).parents for file in files)
        return (Phase.of("prepare_demo_data"),) if needed else ()

    @cache  # noqa: B019  (a project lives as long as its process)
    def based(self, model: str) -> Phases:
        """Up to a base model."""
        return (Phase.of("prepare_pretrained", model=model),)

    @cache  # noqa: B019  (a project lives as long as its process)
    def validated(self, dataset: str) -> Phases:
        """Up to a data set's validation."""
        files = [file for source in self.sources[dataset].values() for file in source.files]
        before = (*self.drawn(files), *self.based(self.tokenizer_model(dataset)))
        return (*before, Phase.of("validate_dataset", dataset=dataset))

    @cache  # noqa: B019  (a project lives as long as its process)
    def indexed(self, dataset: str) -> Phases:
        """Up to a data set's index."""
        return (*self.validated(dataset), Phase.of("index_dataset", dataset=dataset))

    @cache  # noqa: B019  (a project lives as long as its process)
    def started(self, experiment: str, above: tuple[str, ...] = (), adapter: bool = True) -> Phases:
        """Up to the weights, and with `adapter` the adapter, that an experiment starts from; `above` lead here."""
        if experiment in above:
            circle = " -> ".join([*above, experiment])
            raise ConfigError(f"experiments start from each other in a circle: {circle}.")
        phases = self.based(self.starts[experiment].model)
        upstreams = [self.starts[experiment].upstream]
        if adapter:
            upstreams.append(self.experiments[experiment].adapter_upstream)
        for upstream in upstreams:
            if upstream and upstream[0] in self.experiments:
                phases += self.converted(*upstream, above=(*above, experiment))
        return _each_once(phases)

    @cache  # noqa: B019  (a project lives as long as its process)
    def admitted(self, experiment: str, above: tuple[str, ...] = ()) -> Phases:
        """Up to what an experiment's training is a function of."""
        options = self.experiments[experiment]
        heldout = self.drawn(filter(None, [options.val.data_path]))
        before = (*heldout, *self.indexed(options.data.dataset), *self.started(experiment, above))
        return _each_once((*before, Phase.of("prepare_training", experiment=experiment)))

    @cache  # noqa: B019  (a project lives as long as its process)
    def trained(self, experiment: str, above: tuple[str, ...] = ()) -> Phases:
        """Up to an experiment's training."""
        return (*self.admitted(experiment, above), Phase.of("train_experiment", experiment=experiment))

    @cache  # noqa: B019  (a project lives as long as its process)
    def converted(
        self, experiment: str, step: EvaluatedStep, above: tuple[str, ...] = (), format: str = FORMATS[0]
    ) -> Phases:
        """Up to a converted checkpoint."""
        weights = weights_name(self.experiments[experiment].train.lora_ft, step.ema, format)
        phase = Phase.of("convert_checkpoint", experiment=experiment, step=step.number, weights=weights)
        return (*self.trained(experiment, above), phase)

    def loadable(self, experiment: str, step: EvaluatedStep) -> Phases:
        """Up to the weights that are evaluated, BASE being those that the experiment started from."""
        if step.baseline:
            return self.based(self.starts[experiment].model)
        return self.started(experiment, adapter=False) if step == BASE else self.converted(experiment, step)

    @cache  # noqa: B019  (a project lives as long as its process)
    def listed(self, benchmark: str) -> Phases:
        """Up to a benchmark's prompts."""
        before = self.drawn([self.benchmarks[benchmark].prompts])
        if benchmark in self.foreign:
            before = (Phase.of("import_prompts", benchmark=benchmark),)
        return (*before, Phase.of("prepare_benchmark", benchmark=benchmark))

    @cache  # noqa: B019  (a project lives as long as its process)
    def scored(self, experiment: str, step: EvaluatedStep, benchmark: str) -> Phases:
        """Up to the scores of an evaluation."""
        phase = Phase.of("score_images", experiment=experiment, step=step, benchmark=benchmark)
        return _each_once((*self.listed(benchmark), *self.loadable(experiment, step), phase))


def _each_once(phases: Phases) -> Phases:
    return tuple(dict.fromkeys(phases))

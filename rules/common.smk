"""Loads the config and looks things up in it. All checks happen here, before any job starts."""

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Jobs import the package from here, whichever environment they run in.
PACKAGE_ROOT = str(Path(workflow.basedir) / "workflow")
sys.path.insert(0, PACKAGE_ROOT)
PYTHON_PATHS = [
    PACKAGE_ROOT,
    *filter(None, os.getenv("PYTHONPATH", "").split(os.pathsep)),
]
os.environ.update(
    PYTHONPATH=os.pathsep.join(dict.fromkeys(PYTHON_PATHS)),
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

from omnitune.config import (
    BASE,
    ConfigError,
    EvaluatedStep,
    Project,
    evaluation_folders,
)
from omnitune.data.groups import SETTINGS, group_path, grouped
from omnitune.data.mixture import read_mixture, relevant_files
from omnitune.storage import is_url, version_of

try:
    PROJECT = Project.load(config)
    SOURCES = {
        dataset: {
            source.name: source
            for source in read_mixture(PROJECT.dataset(dataset).data_path)
        }
        for dataset in PROJECT.datasets
    }
except ConfigError as error:
    raise WorkflowError(str(error))


wildcard_constraints:
    dataset=r"[^/]+",
    source=r"[A-Za-z0-9_]+",
    shard=r"\d{5}",
    group=r"\d+",
    model=r"[^/]+",
    experiment=r"[^/]+",
    step=r"\d+(-ema)?",
    benchmark=r"[^/]+",
    part=r"\d+",
    weights=r"transformer(_lora)?(_ema)?",


def all_summaries():
    return expand(
        "prepared/{dataset}/validation/summary.json", dataset=PROJECT.datasets
    )


def all_indexes():
    return expand("prepared/{dataset}/shards/index.parquet", dataset=PROJECT.datasets)


def all_tars(wildcards):
    """Targets of their own: Snakemake does not miss the lost input of a job that need not run."""
    extension = "parquet" if PROJECT.shards_url else "tar"
    return [
        path for dataset in PROJECT.datasets for path in shards_of(dataset, extension)
    ]


def all_encodings(wildcards):
    """With the tars that they are made from: a lost one would stop a job that has to run."""
    encodings = [
        path for experiment in PROJECT.experiments for path in encodings_of(experiment)
    ]
    return [*all_tars(wildcards), *encodings]


def all_trainings():
    return expand("experiments/{experiment}/train.json", experiment=PROJECT.experiments)


def all_conversions():
    """With the trainings: Snakemake does not miss the train.json of one that failed where its old conversions are left."""
    conversions = [
        path
        for experiment in PROJECT.experiments
        for path in conversions_of(experiment)
    ]
    return [*all_trainings(), *conversions]


def all_scores():
    scores = [
        path for experiment in PROJECT.experiments for path in scores_of(experiment)
    ]
    return [*all_trainings(), *scores]


def all_reports():
    reports = expand(
        "experiments/{experiment}/report/index.html", experiment=PROJECT.experiments
    )
    return [*all_trainings(), *reports]


def conversion_of(experiment, step):
    folder = PROJECT.experiments[experiment].weights_folder(step.ema)
    return f"experiments/{experiment}/checkpoint-{step.number}/{folder}/conversion.json"


def conversions_of(experiment):
    return [
        conversion_of(experiment, step)
        for step in PROJECT.experiments[experiment].evaluated
    ]


def evaluations_of(experiment):
    upstream, step = PROJECT.starts[experiment].upstream or (None, BASE)
    shared = (
        upstream in PROJECT.experiments
        and step in PROJECT.experiments[upstream].evaluated
    )
    options = PROJECT.experiments[experiment]
    folders = evaluation_folders(Path("experiments") / experiment, options, shared)
    return {str(step): str(folder) for step, folder in folders.items()}


def scores_of(experiment):
    return expand(
        "{folder}/{benchmark}/scores.json",
        folder=evaluations_of(experiment).values(),
        benchmark=PROJECT.benchmarks,
    )


def experiment_options(wildcards):
    try:
        return PROJECT.experiments[wildcards.experiment]
    except KeyError:
        raise WorkflowError(
            f"experiment {wildcards.experiment!r} is not in the config; known: {', '.join(PROJECT.experiments)}."
        )


def options_file(wildcards):
    return str(PROJECT.options_files[wildcards.experiment])


def base_model(wildcards):
    return f"{PROJECT.starts[wildcards.experiment].base}/manifest.json"


def base_folder(wildcards):
    return str(PROJECT.starts[wildcards.experiment].base)


def starting_transformer(wildcards):
    return str(PROJECT.starts[wildcards.experiment].transformer)


def starting_conversion(wildcards):
    """The conversion that another experiment must have done first; nothing where training starts from the base."""
    upstream = PROJECT.starts[wildcards.experiment].upstream
    return (
        conversion_of(*upstream)
        if upstream and upstream[0] in PROJECT.experiments
        else []
    )


def starting_adapter(wildcards):
    """The adapter that training goes on from; one of another experiment's must have been converted first."""
    options = experiment_options(wildcards)
    path = options.train.lora_path
    if path is None:
        return []
    if options.adapter_upstream and options.adapter_upstream[0] in PROJECT.experiments:
        return conversion_of(*options.adapter_upstream)
    return (
        path
        if path.endswith(".safetensors")
        else f"{path}/pytorch_lora_weights.safetensors"
    )


def heldout_samples(wildcards):
    """What training is validated with; the weights do not depend on it."""
    val = experiment_options(wildcards).val
    validates = val.validation_steps or val.train_visualization_steps
    return val.data_path if val.data_path and validates else []


def pretrained_source(wildcards):
    for start in PROJECT.starts.values():
        if start.model == wildcards.model:
            return start.source
    raise WorkflowError(
        f"resources/pretrained/{wildcards.model}: no experiment starts from this model."
    )


def local_pretrained(wildcards):
    """The files of a local pipeline folder are inputs; a repository id or `demo` is not a file."""
    name = pretrained_source(wildcards).pretrained_model_path
    if name == "demo":
        return []
    files = [*Path(name).glob("[!.]*"), *Path(name).glob("[!.]*/[!.]*")]
    return sorted(str(path) for path in files if path.is_file())


def pretrained_keys(wildcards):
    return pretrained_source(wildcards).model_dump(mode="json", exclude={"arch_opt"})


def download_cache(wildcards):
    caches = [
        options.cache_dir
        for name, options in PROJECT.experiments.items()
        if PROJECT.starts[name].model == wildcards.model and options.cache_dir
    ]
    return caches[0] if caches else ""


def source_files(wildcards):
    return [str(path) for path in SOURCES[wildcards.dataset][wildcards.source].files]


def local_files(wildcards):
    return [path for path in source_files(wildcards) if not is_url(path)]


def url_versions(wildcards):
    """In place of the time of change that Snakemake sees of a local file."""
    return {path: version_of(path) for path in source_files(wildcards) if is_url(path)}


def dataset_base(wildcards):
    """Of the first experiment that trains on the data set: the folder with its tokenizer, VAE and text encoder."""
    for name, options in PROJECT.experiments.items():
        if options.data.dataset == wildcards.dataset:
            return str(PROJECT.starts[name].base)


def dataset_base_manifest(wildcards):
    return f"{dataset_base(wildcards)}/manifest.json"


def validation_checks(wildcards):
    return PROJECT.dataset(wildcards.dataset).checks


def validated_sources(wildcards):
    return expand(
        "prepared/{dataset}/validation/sources/{source}/samples.parquet",
        dataset=wildcards.dataset,
        source=SOURCES[wildcards.dataset],
    )


def max_reject_fraction(wildcards):
    return PROJECT.dataset(wildcards.dataset).max_reject_fraction


def shard_cut(wildcards):
    return PROJECT.dataset(wildcards.dataset).shard_cut


def shard_settings(wildcards):
    """What a tar depends on beside its manifest: the limits of images, and the folder or URL that it is written to."""
    folder = f"prepared/{wildcards.dataset}/shards"
    if PROJECT.shards_url:
        folder = f"{PROJECT.shards_url.rstrip('/')}/{wildcards.dataset}"
    return {
        "limits": PROJECT.dataset(wildcards.dataset).image_limits,
        "tars": folder,
        "format_version": 2,
    }


def shard_outputs():
    """A tar at a URL is no file that Snakemake could see; its own index stands for it."""
    stem = "prepared/{dataset}/shards/{source}-{shard}"
    tar = {} if PROJECT.shards_url else {"tar": f"{stem}.tar"}
    return {**tar, "index": f"{stem}.parquet"}


def manifests_of(dataset):
    """Known once validation has run: one manifest for each shard that has accepted samples."""
    folder = Path(checkpoints.validate_dataset.get(dataset=dataset).output.shards)
    return sorted(str(path) for path in folder.glob("*.jsonl"))


def shards_of(dataset, extension):
    return [
        f"prepared/{dataset}/shards/{Path(manifest).stem}.{extension}"
        for manifest in manifests_of(dataset)
    ]


def digest_of(manifest):
    """In place of the manifest's age: most of them are written anew with the same content."""
    return str(Path(manifest).with_suffix(".sha256"))


def shard_manifest(wildcards):
    folder = checkpoints.validate_dataset.get(dataset=wildcards.dataset).output.shards
    return f"{folder}/{wildcards.source}-{wildcards.shard}.jsonl"


def shard_digest(wildcards):
    return digest_of(shard_manifest(wildcards))


def groups_of(dataset):
    """Manifests by source and number of the group that they are encoded in."""
    per_group = PROJECT.dataset(dataset).shards_per_encoding
    return grouped(map(Path, manifests_of(dataset)), per_group)


def dataset_plans(wildcards):
    return [
        f"prepared/{wildcards.dataset}/shards/plans/{source}-{group:04d}.sha256"
        for source, group in groups_of(wildcards.dataset)
    ]


def shard_indexes(wildcards):
    return shards_of(wildcards.dataset, "parquet")


def experiment_index(wildcards):
    return f"prepared/{experiment_options(wildcards).data.dataset}/shards/index.parquet"


def experiment_shards(wildcards):
    return shards_of(experiment_options(wildcards).data.dataset, "parquet")


def group_manifests(wildcards):
    groups = groups_of(wildcards.dataset)
    manifests = groups.get((wildcards.source, int(wildcards.group)), [])
    return [str(path) for path in manifests]


def group_digests(wildcards):
    return [digest_of(manifest) for manifest in group_manifests(wildcards)]


def group_shards(wildcards):
    return [
        f"prepared/{wildcards.dataset}/shards/{Path(manifest).stem}.parquet"
        for manifest in group_manifests(wildcards)
    ]


def encoding_folder(experiment):
    dataset = PROJECT.experiments[experiment].data.dataset
    return Path("prepared") / dataset / "encoded" / PROJECT.starts[experiment].model


def encodings_of(experiment):
    data = PROJECT.experiments[experiment].data
    if not data.encode:
        return []
    return [
        str(group_path(encoding_folder(experiment), source, group))
        for source, group in groups_of(data.dataset)
    ]


def experiment_encoding(wildcards):
    """What the encoding depends on, as a file; nothing where training encodes by itself."""
    if not experiment_options(wildcards).data.encode:
        return []
    return str(encoding_folder(wildcards.experiment) / "settings.json")


def experiment_encodings(wildcards):
    return encodings_of(wildcards.experiment)


def encoded_folder(wildcards):
    return str(encoding_folder(wildcards.experiment))


def encoding_options(wildcards):
    """Options file of an experiment that trains on this encoding; all of them agree in what it depends on."""
    for name, options in PROJECT.experiments.items():
        same_data = options.data.dataset == wildcards.dataset
        if same_data and PROJECT.starts[name].model == wildcards.model:
            return str(PROJECT.options_files[name])
    raise WorkflowError(
        f"prepared/{wildcards.dataset}/encoded/{wildcards.model}: no experiment trains on this data from this model."
    )


def encoding_settings(wildcards):
    data = PROJECT.dataset(wildcards.dataset)
    return data.model_dump(include={*SETTINGS, "shards_per_encoding"})


def experiment_mixture(wildcards):
    return [
        str(path)
        for path in relevant_files(experiment_options(wildcards).data.data_path)
    ]


def training_keys(wildcards):
    """What the weights depend on; other keys of the options file may change without a new training."""
    options = experiment_options(wildcards)
    return {"identity": options.identity, "checkpoints": options.checkpoint_steps}


def evaluated_weights(wildcards):
    """Manifest of the weights to evaluate; those of the base are what the experiment started from."""
    step = EvaluatedStep.parse(wildcards.step)
    if step == BASE:
        return starting_conversion(wildcards)
    return conversion_of(wildcards.experiment, step)


def benchmark_prompts(wildcards):
    return PROJECT.benchmarks[wildcards.benchmark].prompts


def benchmark_protocol(wildcards):
    """What the images depend on: how they are checked later is no reason to make them again."""
    return PROJECT.benchmarks[wildcards.benchmark].model_dump(
        mode="json", exclude={"check"}
    )


def benchmark_settings(wildcards):
    return PROJECT.benchmarks[wildcards.benchmark].model_dump(mode="json")


def benchmark_parts(wildcards):
    return expand(
        "experiments/{experiment}/evaluation/{step}/{benchmark}/parts/{part}.jsonl",
        part=range(PROJECT.benchmarks[wildcards.benchmark].parts),
        **wildcards,
    )


def experiment_scores(wildcards):
    return scores_of(wildcards.experiment)


def experiment_conversions(wildcards):
    return conversions_of(wildcards.experiment)


def experiment_evaluations(wildcards):
    return evaluations_of(wildcards.experiment)


def validation_summary(wildcards):
    return (
        f"prepared/{experiment_options(wildcards).data.dataset}/validation/summary.json"
    )


def validation_rejected(wildcards):
    return f"prepared/{experiment_options(wildcards).data.dataset}/validation/rejected.jsonl"


def resolved_options(wildcards):
    return experiment_options(wildcards).model_dump(mode="json")


def all_benchmarks(wildcards):
    return {
        name: protocol.model_dump(mode="json")
        for name, protocol in PROJECT.benchmarks.items()
    }


def all_prompts(wildcards):
    return [protocol.prompts for protocol in PROJECT.benchmarks.values()]

"""Where the models lie that measures and local judges need. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path

from omnitune.config import Benchmark
from omnitune.config.benchmarks.judge import Judge
from omnitune.config.choices import MEASURES
from omnitune.io.model_files.part_configs import read_own, require_no_adapter
from omnitune.io.places import is_local
from omnitune.pretrained.weights import weights_hash

KEY = "measures.model"  # for messages
# Of a repository: what transformers reads, and nothing that would run as code.
PATTERNS = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model")

# By these transformers chooses what it loads.
LOADED_BY = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")

UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers takes where a config names no outputs


class NotThereError(ValueError):
    """A model that a measure or a judge needs and that is not there."""


def local_model_files(benchmark: Benchmark) -> list[Path]:
    """Files of those models that are folders on this machine, sorted."""
    folders = [Path(entry.model) for entry in benchmark.measured if entry.model]
    return sorted(path for folder in folders for path in folder.glob("*") if path.is_file())


def models_read(benchmark: Benchmark) -> dict[str, dict[str, str]]:
    """What scores depend on of the models: of each measure that needs one its hash, or its absence; fetches them."""
    found = {}
    for entry in benchmark.measured:
        if entry.model:
            try:
                found[entry.name] = {"model": entry.model, "sha256": weights_hash(find_model(entry.model, fetch=True))}
            except NotThereError as error:
                found[entry.name] = {"model": entry.model, "absent": str(error)}
    return found


def label_index(labels: Mapping[int, str], label: str | None, model: str | Path) -> int | None:
    """Which output of a classifier has a label; None of a regression, which has one output.

    Raises:
        NotThereError: for a label that the model does not have, or none where it has several.
    """
    known = ", ".join(labels.values())
    if len(labels) == 1:
        if label is not None:
            raise NotThereError(f"measures.label: {model} has one output, which needs no label; take {label!r} out")
        return None
    if label not in labels.values():
        said = "is missing" if label is None else f"{label!r} is no label"
        raise NotThereError(f"measures.label: {said} of {model}; it has {known}")
    return next(index for index, name in labels.items() if name == label)


def check_labels(benchmark: Benchmark) -> None:
    """Raises NotThereError for a label that a model in a folder does not have; of others it is not known yet."""
    for entry in benchmark.measured:
        if not MEASURES[entry.name].has_label or entry.model is None or not Path(entry.model).is_dir():
            continue
        try:
            labels = read_own(find_model(entry.model) / "config.json").get("id2label", UNNAMED)
        except ValueError:
            continue  # the model is not there, which the report says
        if isinstance(labels, dict):
            label_index(dict(enumerate(map(str, labels.values()))), entry.label, entry.model)


def judge_key(judge: Judge) -> str:
    """That of a local judge's model, for messages."""
    return f"judges.{judge.name}.model"


def check_judge_models(benchmark: Benchmark) -> None:
    """Raises NotThereError for the model of a local judge that is a folder and not there, or looks like one."""
    for judge in benchmark.judges:
        if judge.base_url is None and is_local(judge.model, judge_key(judge)):
            find_model(judge.model, key=judge_key(judge))


def fetch_judges(benchmark: Benchmark) -> None:
    """Downloads the models of local judges that are repositories; NotThereError where one cannot be had."""
    for judge in benchmark.judges:
        if judge.base_url is None:
            find_model(judge.model, fetch=True, key=judge_key(judge))


def judge_folders(judge: Judge) -> list[Path]:
    """That of a local judge's model, as far as it is there."""
    try:
        return [find_model(judge.model, key=judge_key(judge))]
    except NotThereError:
        return []


def find_model(name: str, *, fetch: bool = False, key: str = KEY) -> Path:
    """The folder of a model: the one that is named, or a download of the repository.

    Args:
        name: a folder or a repository id.
        fetch: download it where it is not yet.
        key: that names it, for messages.

    Raises:
        NotThereError: where it is not there, or a JSON would have the library load something else.
    """
    from omnitune.pretrained.hub import fetch_repository  # each start of the workflow imports this module

    try:
        local = is_local(name, key)
        folder = Path(name) if local else fetch_repository(name, None, key, None, PATTERNS, downloaded=not fetch)
    except ValueError as error:
        raise NotThereError(str(error)) from None
    if not (folder / "config.json").is_file():
        raise NotThereError(f"{key}: {name!r} has no config.json; it is no folder of a model.")
    try:
        require_no_adapter(folder)
        for path in filter(Path.is_file, map(folder.joinpath, LOADED_BY)):
            read_own(path)
    except ValueError as error:
        raise NotThereError(f"{key}: {error}") from None
    return folder

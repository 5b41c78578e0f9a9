"""Where the models lie that measures need. Imports nothing heavy."""

from pathlib import Path

from omnitune.config import Benchmark
from omnitune.errors import reason_of
from omnitune.pretrained.weights import weights_hash

# Of a repository: what transformers reads, and nothing that would run as code.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")


class NotThereError(ValueError):
    """A model that a measure needs and that is not there."""


def local_model_files(benchmark: Benchmark) -> list[Path]:
    """Files of those models that are folders on this machine, sorted."""
    folders = [Path(entry.model) for entry in benchmark.measured if entry.model]
    return sorted(path for folder in folders for path in folder.glob("*") if path.is_file())


def models_read(benchmark: Benchmark) -> dict[str, dict[str, str]]:
    """What scores depend on of the models: of each measure that needs one its hash, or that it is absent; fetches them."""
    found = {}
    for entry in benchmark.measured:
        if entry.model:
            try:
                found[entry.name] = {"model": entry.model, "sha256": weights_hash(find_model(entry.model, fetch=True))}
            except NotThereError as error:
                found[entry.name] = {"model": entry.model, "absent": str(error)}
    return found


def find_model(name: str, *, fetch: bool = False) -> Path:
    """The folder of a model: the one that is named, or a download of the repository.

    Args:
        name: a folder or a repository id.
        fetch: download it where it is not yet.

    Raises:
        NotThereError: where it is not there.
    """
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise NotThereError("there is no folder with a config.json")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=not fetch))
    except Exception as error:  # of the hub, the network or the disk
        hub = f"as an id of the hub: {reason_of(error)}" if fetch else "no repository that was downloaded"
        raise NotThereError(f"is no folder, and {hub}") from None

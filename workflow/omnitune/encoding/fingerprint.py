"""What an encoding is a function of, as every file of one carries it. Imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors

from omnitune.config.affects import keys_affecting
from omnitune.config.data import DataOptions
from omnitune.errors import ConfigError
from omnitune.pretrained.weights import read_manifest, weights_hash

FORMAT_VERSION = 1  # raised with every change of what is stored
COMPONENTS = ("vae", "mllm", "processor")  # of the base model: those that encoding uses
FINGERPRINT = "fingerprint"  # key in the metadata of parquet and safetensors files
ENCODE = "Encode: snakemake --cores 2 encode --forcerun encode_dataset, or omnitune encode --config OPTIONS"


def fingerprint_of(base: Path, data: DataOptions) -> dict[str, Any]:
    """What an encoding is a function of, beside the shards: weights, tokenizer, options and the format of the files."""
    components = {name: _component_hash(Path(base), name) for name in COMPONENTS}
    content = {"format": FORMAT_VERSION, **components, **keys_affecting(data, "encodings")}
    normalised: dict[str, Any] = json.loads(json.dumps(content))
    return normalised


def _component_hash(base: Path, name: str) -> str:
    if read_manifest(base / name) is None and not (base / name).is_dir():
        raise ConfigError(f"{base}: has no {name}/, which encoding needs. It is not a folder in the published layout.")
    return weights_hash(base / name)


def stored_fingerprint(path: Path) -> dict[str, Any] | None:
    """The fingerprint that a file of an encoding carries; None where there is no such file, or none that is whole."""
    try:
        if path.suffix == ".parquet":
            metadata = pq.read_schema(path).metadata or {}
            text = metadata.get(FINGERPRINT.encode(), b"null").decode()
        else:
            with safetensors.safe_open(path, "np") as file:
                text = (file.metadata() or {}).get(FINGERPRINT, "null")
        found = json.loads(text)
    except (OSError, RecursionError, ValueError, pa.ArrowException, safetensors.SafetensorError):
        return None
    return found if isinstance(found, dict) else None


def require_fingerprint(path: Path, asked: dict[str, Any]) -> None:
    """Raises ConfigError, naming what differs, unless a file of an encoding carries this fingerprint."""
    found = stored_fingerprint(path)
    if found is None:
        problem = "is missing" if not path.exists() else "cannot be read"
        raise ConfigError(f"{path}: {problem}. {ENCODE}.")
    if found != asked:
        names = [name for name in {**asked, **found} if asked.get(name) != found.get(name)]
        lines = [f"{name}: {asked.get(name)!r} is asked, encoded with {found.get(name)!r}" for name in names]
        raise ConfigError("\n  - ".join([f"{path}: was encoded with something else. {ENCODE}.", *lines]))

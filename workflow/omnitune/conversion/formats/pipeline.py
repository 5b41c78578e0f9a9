"""A whole pipeline folder: the transformer, and all other parts as the base has them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnitune.conversion.formats.diffusers import Digests, write_transformer
from omnitune.conversion.tensors import State
from omnitune.io.files import write_json
from omnitune.models.components import model_index
from omnitune.pretrained.files import PARTS, walk
from omnitune.pretrained.weights import check_weights

TRANSFORMER = "transformer"


def write_pipeline(
    folder: Path, state: State, config: Mapping[str, Any], max_shard_size: str, base: Path | None
) -> Digests:
    """Writes the folder; returns what the weights were to be; ValueError where the base lacks a part or changed."""
    assert base is not None  # of a Target
    others = [base / part for part in PARTS if part != TRANSFORMER]
    missing = [path.name for path in others if not path.is_dir()]
    if missing:
        raise ValueError(f"{base}: lacks {', '.join(missing)}; it is not a pipeline folder in the published layout.")
    check_weights(others)
    for source in others:
        for path in walk(source):
            place = folder / source.name / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    (folder / TRANSFORMER).mkdir()
    digests = write_transformer(folder / TRANSFORMER, state, config, max_shard_size)
    write_json(folder / "model_index.json", model_index(folder))
    return digests

"""The base model's pipeline folder: built, copied from a folder or fetched from a repository."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from omnitune.config.experiment.model import ModelOptions
from omnitune.demo.base_model import build_base_model
from omnitune.io.files import atomic_folder, sha256_of, share, write_json
from omnitune.io.places import is_local
from omnitune.paths import MANIFEST_FILE
from omnitune.pretrained.files import (
    DEMO,
    ENCODER_KEY,
    INDEX,
    PATH_KEY,
    VAE_KEY,
    check_encoder,
    check_parts,
    check_vae,
    require_own,
    require_parts,
    taken_parts,
    walk,
)
from omnitune.pretrained.hub import fetch_repository

logger = logging.getLogger("omnitune")

ENCODER_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")  # of a repository that is a text encoder


def prepare_pretrained(model: ModelOptions, folder: Path, cache_dir: str | None = None) -> None:
    """Fills `folder` with a pipeline in the published layout and the SHA-256 of its files; whole or not at all.

    Args:
        model: where transformer, VAE and text encoder come from.
        folder: the pipeline folder to make; an older one is replaced.
        cache_dir: cache of downloads; None for the library's own.

    Raises:
        ValueError: if a source does not exist or lacks a part.
    """
    with atomic_folder(folder) as temporary:
        if model.pretrained_model_path == DEMO:
            logger.info("building the demo's base model")
            build_base_model(temporary)
        else:
            _assemble(model, temporary, cache_dir)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_json(temporary / MANIFEST_FILE, {str(path.relative_to(temporary)): sha256_of(path) for path in files})


def _assemble(model: ModelOptions, temporary: Path, cache_dir: str | None) -> None:
    parts = taken_parts(model)
    wanted = [INDEX, *(f"{part}/*" for part in parts)]
    source = _local(model.pretrained_model_path, model.pretrained_revision, PATH_KEY, cache_dir, wanted)
    require_parts(source, parts, PATH_KEY)
    for part in parts:
        _take(source / part, temporary / part, source)  # looks at links before anything is opened
    _take(source / INDEX, temporary / INDEX, source)
    check_parts(source, parts, PATH_KEY)
    vae = model.pretrained_vae_model_name_or_path
    if vae:
        inside = model.vae_subfolder or ""
        wanted = [f"{inside}/*"] if inside else ["*.json", "*.safetensors"]
        found = _local(vae, model.pretrained_vae_revision, VAE_KEY, cache_dir, wanted)
        _take(found / inside, temporary / "vae", found)
        check_vae(found, model.vae_subfolder)
    encoder = model.pretrained_text_encoder_model_name_or_path
    if encoder:
        found = _local(encoder, model.pretrained_text_encoder_revision, ENCODER_KEY, cache_dir, ENCODER_FILES)
        _take(found, temporary / "mllm", found)
        _take(found, temporary / "processor", found, weights=False)
        check_encoder(found, ENCODER_KEY)


def _local(name: str, revision: str | None, key: str, cache_dir: str | None, patterns: Sequence[str]) -> Path:
    """A local folder with the content of `name`, a folder or a repository id, of which these files are fetched."""
    if is_local(name, key):
        return Path(name)
    return fetch_repository(name, revision, key, cache_dir, patterns)


def _take(source: Path, target: Path, folder: Path, weights: bool = True) -> None:
    """Takes a file or a folder of the pipeline `folder` over; with `weights` off, all but its weights.

    Weights stay one file in both places, small files are copied.
    """
    for path in walk(source):
        heavy = path.name.endswith(".safetensors")
        if not weights and (heavy or path.name.endswith(".safetensors.index.json")):
            continue
        require_own(path, folder)
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        share(path, place) if heavy else shutil.copy2(path, place)

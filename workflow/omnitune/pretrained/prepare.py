"""The base model's pipeline folder: built, copied from a folder or fetched from a repository."""

import logging
import shutil
from pathlib import Path

from omnitune.config.options import ModelOptions
from omnitune.demo.base_model import build_base_model
from omnitune.io.files import atomic_folder, sha256_of, write_json
from omnitune.io.places import is_local
from omnitune.paths import MANIFEST_FILE
from omnitune.pretrained.files import (
    DEMO,
    ENCODER_KEY,
    INDEX,
    PARTS,
    PATH_KEY,
    VAE_KEY,
    check_encoder,
    check_parts,
    require_own,
    require_parts,
    walk,
)
from omnitune.pretrained.hub import fetch_repository

logger = logging.getLogger("omnitune")


def prepare_pretrained(model: ModelOptions, folder: Path, cache_dir: str | None = None) -> None:
    """Fills `folder` with a pipeline in the published layout and the SHA-256 of its files; it appears whole or not at all.

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
    source = _local(model.pretrained_model_path, model.pretrained_revision, PATH_KEY, cache_dir)
    require_parts(source, PARTS, PATH_KEY)
    for part in PARTS:
        _copy(source / part, temporary / part, source)  # looks at links before anything is opened
    _copy(source / INDEX, temporary / INDEX, source)
    check_parts(source, PARTS, PATH_KEY)
    vae = model.pretrained_vae_model_name_or_path
    if vae:
        found = _local(vae, model.pretrained_vae_revision, VAE_KEY, cache_dir, "vae/*")
        require_parts(found, ["vae"], VAE_KEY)
        _replace(found / "vae", temporary / "vae", found)
        check_parts(found, ["vae"], VAE_KEY)
    encoder = model.pretrained_text_encoder_model_name_or_path
    if encoder:
        found = _local(encoder, model.pretrained_text_encoder_revision, ENCODER_KEY, cache_dir)
        _replace(found, temporary / "mllm", found)
        _replace(found, temporary / "processor", found, weights=False)
        check_encoder(found, ENCODER_KEY)


def _local(name: str, revision: str | None, key: str, cache_dir: str | None, pattern: str | None = None) -> Path:
    """A local folder with the content of `name`, a folder or a repository id."""
    if is_local(name, key):
        return Path(name)
    return fetch_repository(name, revision, key, cache_dir, pattern)


def _replace(source: Path, target: Path, folder: Path, weights: bool = True) -> None:
    shutil.rmtree(target, ignore_errors=True)
    _copy(source, target, folder, weights)


def _copy(source: Path, target: Path, folder: Path, weights: bool = True) -> None:
    """Copies a file or a folder of the pipeline `folder`; with `weights` off, all but its weights."""
    for path in walk(source):
        if not weights and path.name.endswith((".safetensors", ".safetensors.index.json")):
            continue
        require_own(path, folder)
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place)

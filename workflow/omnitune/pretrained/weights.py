"""Folders of weights: one hash of each, and whether its files are what its manifest says. Imports nothing heavy."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from omnitune.errors import shown
from omnitune.io.files import sha256_of
from omnitune.io.kept import Conversion, Kept, read_kept
from omnitune.paths import CONVERSION_FILE, MANIFEST_FILE

FILE_NAME = re.compile(r"[^/\\\0]+(/[^/\\\0]+)*")  # below its folder


class Manifest(NamedTuple):
    """What says which files a folder holds.

    Attributes:
        path: conversion.json in it, or manifest.json of the pipeline that it is a part of.
        hashes: SHA-256 of each file by its path in the folder.
    """

    path: Path
    hashes: dict[str, str]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest that speaks for a folder; None where none does. Raises ValueError for one that cannot be read."""
    for path in (folder / CONVERSION_FILE, folder.parent / MANIFEST_FILE):
        if path.is_file():
            if path.parent == folder:
                files = read_kept(path, Conversion, _fix(path))["files"]
                hashes = {name: facts["sha256"] for name, facts in files.items()}
            else:
                start = f"{folder.name}/"
                content = read_kept(path, Kept, _fix(path))
                hashes = {k.removeprefix(start): str(v) for k, v in content.items() if k.startswith(start)}
            outside = [name for name in hashes if not FILE_NAME.fullmatch(name) or ".." in name.split("/")]
            if outside:
                raise ValueError(f"{path}: names {shown(outside[0])}, which is no file of this folder. {_fix(path)}")
            # a pipeline's may be of something else
            return Manifest(path, hashes) if hashes or path.parent == folder else None
    return None


def check_weights(folders: Iterable[Path], rank: int = 0, world_size: int = 1) -> int:
    """Looks whether the files of folders are what their manifests say; returns how many files were looked at.

    Args:
        folders: of converted weights, or parts of a pipeline; what has no manifest is taken as it is.
        rank, world_size: of processes that share the files among them.

    Raises:
        ValueError: naming the file that is missing, another, or too many.
    """
    files: list[tuple[Path, str, Path]] = []
    for folder in folders:
        manifest = read_manifest(folder)
        if manifest is None:
            continue
        files += [(folder / name, sha256, manifest.path) for name, sha256 in sorted(manifest.hashes.items())]
        for path in _files_of(folder):
            if path.relative_to(folder).as_posix() not in manifest.hashes and path != manifest.path:
                raise ValueError(f"{path}: is not named by {manifest.path}. Move it away. Or: {_fix(manifest.path)}")
    for path, sha256, named_by in files[rank::world_size]:
        if not path.is_file():
            raise ValueError(f"{path}: is missing. {_fix(named_by)}")
        if sha256_of(path) != sha256:
            raise ValueError(f"{path}: is not what was written (its SHA-256 differs from {named_by}). {_fix(named_by)}")
    return len(files)


def weights_hash(folder: Path) -> str:
    """One hash of a folder: that of conversion.json where a conversion has written it, as this holds those of its
    files; otherwise over its files, by the pipeline's manifest where it is part of one.

    Raises ValueError for a folder without files.
    """
    manifest = read_manifest(folder)
    if manifest and manifest.path.parent == folder:
        return sha256_of(manifest.path)
    hashes = (
        manifest.hashes if manifest else {p.relative_to(folder).as_posix(): sha256_of(p) for p in _files_of(folder)}
    )
    if not hashes:
        raise ValueError(f"{folder}: holds no files: name a folder with weights.")
    lines = [f"{folder.name}/{name} {hashes[name]}\n" for name in sorted(hashes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files_of(folder: Path) -> list[Path]:
    """Files of a folder, but for hidden ones, which nothing loads."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _fix(manifest: Path) -> str:
    verb = "Convert" if manifest.name == CONVERSION_FILE else "Prepare"
    return f"{verb} again: snakemake --cores 2 --force {manifest}"

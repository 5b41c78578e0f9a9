"""Files that jobs leave without declaring them to Snakemake, which does not miss them: which of them are lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from omnitune.io.files import sha256_of
from omnitune.paths import (
    BASE_MANIFEST,
    ENCODED,
    GENERATIONS,
    PART,
    STATE_FILE,
    TRAINED,
)
from omnitune.project import Project

HASHED_BYTES = 64 << 20  # of larger files, whoever loads them looks at the content


def lost_files(project: Project) -> list[str]:
    """One line for each file that a finished stage names, and that is lost or another now: with what makes it again.

    Whoever needs such a file says so as well. Looked at are names, sizes and times; what is younger than the file that
    names it is hashed.
    """
    lines: list[str] = []
    for model in project.models:
        manifest = Path(BASE_MANIFEST.format(model=model))
        lines += _readable(manifest, _of_manifest(manifest, _read_hashes))
    for dataset, model in sorted({(o.data.dataset, project.starts[n].model) for n, o in project.experiments.items()}):
        for group in sorted(Path(ENCODED.format(dataset=dataset, model=model)).glob("groups/*.parquet")):
            lines += _readable(group, _lost_encodings(group))
    for name in project.experiments:
        trained = Path(TRAINED.format(experiment=name))
        lines += _readable(trained, _lost_checkpoints(trained))
        for step, format in project.exports(name):
            manifest = Path(project.conversion(name, step, format))
            lines += _readable(manifest, _of_manifest(manifest, lambda content: content["files"]))
    for owner, step, benchmark in project.evaluated(project.experiments):
        keys = {"experiment": owner, "step": step, "benchmark": benchmark}
        generations = Path(GENERATIONS.format(**keys))
        lines += _readable(generations, _lost_images(generations, PART.format(part="*", **keys)))
    return list(dict.fromkeys(lines))


def _readable(path: Path, lines: Iterator[str]) -> Iterator[str]:
    """The lines on what a file names; one on the file itself where it cannot be read."""
    try:
        yield from lines
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        yield f"{path} cannot be read ({error}). To make it again: snakemake --cores 2 --force {path}"


def _read_hashes(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: {"sha256": sha256} for name, sha256 in content.items()}


def _of_manifest(manifest: Path, files_of: Any) -> Iterator[str]:
    """The files beside a manifest that it names with their hashes."""
    if manifest.is_file():
        for name, facts in files_of(json.loads(manifest.read_text(encoding="utf-8"))).items():
            problem = _problem(manifest.parent / name, facts, manifest)
            if problem:
                yield f"{manifest.parent / name} {problem}. To make it again: snakemake --cores 2 --force {manifest}"


def _problem(path: Path, facts: dict[str, Any], named_by: Path) -> str | None:
    if not path.is_file():
        return f"is missing, which {named_by} names"
    found = path.stat()
    if found.st_size != facts.get("bytes", found.st_size):
        return f"has another size than {named_by} says"
    written = named_by.stat()
    younger = found.st_mtime_ns > written.st_mtime_ns or found.st_ctime_ns > written.st_ctime_ns
    if younger and found.st_size <= HASHED_BYTES and sha256_of(path) != facts["sha256"]:
        return f"was changed after it was written (its SHA-256 is not what {named_by} says)"
    return None


def _lost_encodings(group: Path) -> Iterator[str]:
    rows = pq.read_table(group, columns=["tar", "tar_bytes"]).group_by("tar").aggregate([("tar_bytes", "max")])
    for row in rows.to_pylist():
        tar = group.parents[1] / row["tar"]
        if not tar.is_file() or tar.stat().st_size != row["tar_bytes_max"]:
            problem = "has another size than" if tar.is_file() else "is missing, which"
            yield f"{tar} {problem} {group} says. To make it again: snakemake --cores 2 --force {group}"


def _lost_checkpoints(manifest: Path) -> Iterator[str]:
    """Checkpoints that train.json names; what was left away on purpose is converted already, and needed no more."""
    if manifest.is_file():
        for step in json.loads(manifest.read_text(encoding="utf-8"))["checkpoints"]:
            checkpoint = manifest.parent / f"checkpoint-{step}"
            if not (checkpoint / STATE_FILE).is_file():
                yield (
                    f"{checkpoint}: its training state is missing, which {manifest} names. What is converted stays. To "
                    f"train up to it again: rm {manifest}; snakemake --cores 2 train"
                )


def _lost_images(generations: Path, parts: str) -> Iterator[str]:
    if generations.is_file():
        for line in generations.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["image"] is None:  # it failed
                continue
            path = generations.parent / row["image"]
            problem = _problem(path, row, generations)
            if problem:
                yield f"{path} {problem}. To draw it again: snakemake --cores 2 --force {parts}"

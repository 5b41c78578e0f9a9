"""Made-up projects: options files of a few keys, and what stages would have left, written by hand."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from omnitune.io.parquet import ParquetRows
from omnitune.paths import shard_name
from omnitune.project import Project
from omnitune.sharding.index_row import INDEX_SCHEMA
from omnitune.sharding.write_index import write_index

MINIMAL: dict[str, Any] = {
    "name": "x",
    "data": {"data_path": "mix.yml"},
    "model": {"pretrained_model_path": "demo"},
}


def write(path: Path, content: object) -> Path:
    """Writes text, or YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(**sections: object) -> dict[str, Any]:
    """The smallest options, with other keys in some sections."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in MINIMAL.items()}
    for key, value in sections.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return content


def project(root: Path, *contents: dict[str, Any], benchmarks: tuple[str, ...] = ()) -> Project:
    """The project of these options, whose files are written below `root`, the working directory.

    Data sets are of one source, `a`, unless their mixture is there already; benchmarks are names.
    """
    paths = []
    for content in contents:
        mixture = root / content["data"]["data_path"]
        if not mixture.exists():
            write(mixture, {"data": [{"path": "a.jsonl"}]})
        paths.append(str(write(root / f"{len(paths)}.yml", content)))
    files = [str(write(root / f"{name}.yml", {"prompts": "resources/demo/heldout/edit.jsonl"})) for name in benchmarks]
    return Project.load({"experiments": paths, "benchmarks": files})


def write_shards(index: Path, samples: dict[str, str], per_shard: int = 2, tars: str = "") -> Path:
    """Writes the index over made-up tars: each letter is a sample of its source; returns its path."""
    parts = []
    for source, contents in samples.items():
        for shard, start in enumerate(range(0, len(contents), per_shard)):
            name, own = shard_name(source, shard), contents[start : start + per_shard]
            parts.append(index.parent / f"{name}.parquet")
            parts[-1].parent.mkdir(parents=True, exist_ok=True)
            facts = {"source": source, "shard": shard, "tar": f"{tars}{name}.tar", "tar_sha256": sha256(own)}
            with ParquetRows(parts[-1], INDEX_SCHEMA) as rows:
                for number, content in enumerate(own, start=start + 1):
                    rows.append({**facts, "key": f"{source}_{number:08d}", "sha256": sha256(content)})
    write_index(parts, index)
    return index


def sha256(text: str) -> str:
    """Of its UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()

"""Which weights an evaluation samples with, and what tells them from others. Imports nothing heavy."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnitune.io.files import portable, sha256_of
from omnitune.paths import CONVERSION_FILE, MANIFEST_FILE


@dataclass(frozen=True)
class EvaluatedWeights:
    """Which weights to sample with: a base pipeline, another transformer in its place, an adapter on top."""

    base: Path
    transformer: Path | None
    lora: Path | None

    @property
    def converted(self) -> list[Path]:
        """Those folders among them that a conversion has written."""
        return [path for path in (self.transformer, self.lora) if path and (path / CONVERSION_FILE).is_file()]


def evaluated_weights(base: Path, start: Path, tuned: Path | None) -> EvaluatedWeights:
    """The weights of a checkpoint, or those that an experiment started from.

    Args:
        base: the base pipeline's folder.
        start: the transformer that the experiment started from.
        tuned: the converted checkpoint, transformer/ or transformer_lora/, or its average; None for the start itself.
    """
    own = None if start == base / "transformer" else start
    if tuned is None:
        return EvaluatedWeights(base, own, None)
    if tuned.name.startswith("transformer_lora"):
        return EvaluatedWeights(base, own, tuned)
    return EvaluatedWeights(base, tuned, None)


def describe_weights(weights: EvaluatedWeights) -> dict[str, Any]:
    """For provenance: names, one sha256 over the transformer's (and the adapter's) content, and one over the pipeline's,
    VAE and text encoder included, where its folder has a manifest."""
    base, manifest = weights.base, weights.base / MANIFEST_FILE
    transformer = _folder_hash(weights.transformer) if weights.transformer else _base_hash(base)
    adapters = [_folder_hash(weights.lora)] if weights.lora else []
    return {
        "base": portable(base),
        "transformer": portable(weights.transformer) if weights.transformer else None,
        "lora": portable(weights.lora) if weights.lora else None,
        "sha256": hashlib.sha256("".join([transformer, *adapters]).encode()).hexdigest(),
        "pipeline_sha256": sha256_of(manifest) if manifest.is_file() else None,
    }


def _base_hash(base: Path) -> str:
    """Of the base's own transformer, by the manifest of the base where there is one."""
    manifest = base / MANIFEST_FILE
    if not manifest.is_file():
        return _folder_hash(base / "transformer")
    hashes = json.loads(manifest.read_text(encoding="utf-8"))
    lines = [f"{name} {hashes[name]}\n" for name in sorted(hashes) if name.startswith("transformer/")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _folder_hash(folder: Path) -> str:
    """Of a conversion: that of conversion.json, which holds the hashes of its files. Otherwise over the weight files."""
    manifest = folder / CONVERSION_FILE
    if manifest.is_file():
        return sha256_of(manifest)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds neither {CONVERSION_FILE} nor *.safetensors: name a folder with weights.")
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()

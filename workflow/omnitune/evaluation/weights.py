"""Which weights an evaluation samples with, and what tells them from others. Imports nothing heavy."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnitune.io.files import portable, sha256_of
from omnitune.paths import CONVERSION_FILE, MANIFEST_FILE
from omnitune.pretrained.files import INDEX, PARTS, check_parts, walk
from omnitune.pretrained.transformer import require_transformer, transformer_files
from omnitune.pretrained.weights import weights_hash


@dataclass(frozen=True)
class EvaluatedWeights:
    """Which weights to sample with: a base pipeline, another transformer in its place, an adapter on top, scaled."""

    base: Path
    transformer: Path | None
    lora: Path | None
    lora_scale: float = 1.0

    @property
    def folders(self) -> list[Path]:
        """All that is loaded."""
        parts = [self.base / name for name in ("vae", "mllm", "processor", "scheduler")]
        return [self.transformer or self.base / "transformer", *([self.lora] if self.lora else []), *parts]


def require_there(weights: EvaluatedWeights) -> None:
    """Raises ValueError for weights that are not there, which a library would look for in a network."""
    for folder in weights.folders:
        if folder.is_dir():
            continue
        checkpoints = folder.parents[1].glob(f"checkpoint-*/{folder.name}/{CONVERSION_FILE}")
        converted = sorted(path.parents[1].name for path in checkpoints)
        there = f" Converted are {', '.join(converted)}." if converted else ""
        raise ValueError(f"{folder} is missing: `snakemake --cores 2 convert` makes what an evaluation needs.{there}")


def evaluated_weights(base: Path, start: Path, tuned: Path | None, lora_scale: float = 1.0) -> EvaluatedWeights:
    """The weights of a checkpoint, or those that an experiment started from.

    Args:
        base: the base pipeline's folder.
        start: the transformer that the experiment started from.
        tuned: the converted checkpoint, transformer/ or transformer_lora/, or its average; None for the start itself.
        lora_scale: by which an adapter is scaled.
    """
    own = None if start == base / "transformer" else start
    if tuned is None:
        return EvaluatedWeights(base, own, None)
    if tuned.name.startswith("transformer_lora"):
        return EvaluatedWeights(base, own, tuned, lora_scale)
    return EvaluatedWeights(base, tuned, None)


def is_pipeline(folder: Path) -> bool:
    """Whether a baseline is a pipeline, and not a transformer alone."""
    return (folder / INDEX).is_file()


def baseline_files(folder: Path, key: str) -> list[Path]:
    """The files of a baseline; ValueError, naming the key, where the folder lacks something or a file is damaged."""
    if not is_pipeline(folder) and not (folder / "config.json").is_file():
        raise ValueError(
            f"{key}: {folder} is neither a pipeline's folder ({INDEX}) nor a transformer's (config.json). Name one."
        )
    if not is_pipeline(folder):
        require_transformer(folder, key)
        return transformer_files(folder)
    check_parts(folder, PARTS, key)
    require_transformer(folder / "transformer", key)
    return sorted(path for part in (INDEX, *PARTS) for path in walk(folder / part))


def baseline_weights(base: Path, folder: Path) -> EvaluatedWeights:
    """The weights of a baseline.

    Args:
        base: the pipeline whose transformer is replaced, where the baseline is a transformer.
        folder: of the baseline.
    """
    return EvaluatedWeights(folder, None, None) if is_pipeline(folder) else EvaluatedWeights(base, folder, None)


def describe_weights(weights: EvaluatedWeights) -> dict[str, Any]:
    """For provenance: names, one sha256 over the transformer's (and the adapter's) content, and one over the
    pipeline's, VAE and text encoder included, where its folder is a whole one."""
    base = weights.base
    hashes = [weights_hash(weights.transformer or base / "transformer")]
    hashes += [weights_hash(weights.lora)] if weights.lora else []
    scaled = {} if weights.lora_scale == 1 else {"lora_scale": weights.lora_scale}
    return {
        "base": portable(base),
        "transformer": portable(weights.transformer) if weights.transformer else None,
        "lora": portable(weights.lora) if weights.lora else None,
        **scaled,
        "sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "pipeline_sha256": _pipeline_hash(base),
    }


def _pipeline_hash(folder: Path) -> str | None:
    """By its manifest, or over its parts where another program has written it."""
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        return sha256_of(manifest)
    if not is_pipeline(folder):
        return None
    return hashlib.sha256("".join(weights_hash(folder / part) for part in PARTS).encode()).hexdigest()

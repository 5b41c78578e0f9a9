"""Sizes of published weights, known before they are downloaded: parameters, and about how large the files are."""

from dataclasses import dataclass
from pathlib import Path

from omnitune.config.experiment.model import ModelOptions
from omnitune.pretrained.files import DEMO, local_files


@dataclass(frozen=True)
class Part:
    """A part of a repository.

    Attributes:
        parameters: that training computes with: of a text encoder, those that instructions pass through.
        file_bytes: of its files, about.
    """

    parameters: int
    file_bytes: int


FLUX_VAE = 83_819_683
QWEN, QWEN_TEXT = 3_754_622_976, 3_085_938_688  # with and without the vision tower
VAES = {
    "OmniGen2/OmniGen2": Part(FLUX_VAE, 4 * FLUX_VAE),
    "black-forest-labs/FLUX.1-dev": Part(FLUX_VAE, 2 * FLUX_VAE),
}
TEXT_ENCODERS = {
    "OmniGen2/OmniGen2": Part(QWEN_TEXT, 2 * QWEN),
    "Qwen/Qwen2.5-VL-3B-Instruct": Part(QWEN_TEXT, 2 * QWEN),
}
TRANSFORMERS = {"OmniGen2/OmniGen2": Part(3_967_161_400, 4 * 3_967_161_400)}


def _sources(model: ModelOptions) -> tuple[str, str, str]:
    """Where transformer, VAE and text encoder come from."""
    base = model.pretrained_model_path
    return (
        base,
        model.pretrained_vae_model_name_or_path or base,
        model.pretrained_text_encoder_model_name_or_path or base,
    )


def encoder_bytes(model: ModelOptions, text_bytes: int) -> int:
    """Bytes in memory of VAE (float32) and text encoder (so many bytes a parameter); 0 where one is not known."""
    _, vae, text = _sources(model)
    if vae not in VAES or text not in TEXT_ENCODERS:
        return 0
    return 4 * VAES[vae].parameters + text_bytes * TEXT_ENCODERS[text].parameters


def download_bytes(model: ModelOptions) -> int | None:
    """Bytes that are downloaded, about: the whole base repository, and what replaces its parts. None: not known."""
    base, vae, text = _sources(model)
    if base == DEMO or Path(base).is_dir():
        found: list[int | None] = []
    else:
        parts = (TRANSFORMERS.get(base), VAES.get(base), TEXT_ENCODERS.get(base))
        found = [part.file_bytes if part else None for part in parts]
    for name, known in ((vae, VAES), (text, TEXT_ENCODERS)):
        if name != base and not Path(name).is_dir():
            found.append(known[name].file_bytes if name in known else None)
    return _sum(found)


def pipeline_bytes(model: ModelOptions, folder: Path) -> int | None:
    """Bytes of the base pipeline's folder: what is there, or about what will be. None where that is not known."""
    if folder.is_dir():
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    base, vae, text = _sources(model)
    found: list[int | None] = []
    for name, part, known in ((base, "transformer", TRANSFORMERS), (vae, "vae", VAES), (text, "mllm", TEXT_ENCODERS)):
        if name == base and Path(base).is_dir():
            files = [path for path in local_files(base) if part in path.relative_to(base).parts]
            found.append(sum(path.stat().st_size for path in files))
        else:
            found.append(known[name].file_bytes if name in known else None)
    return _sum(found)


def _sum(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None

"""Which files of a local pipeline folder are taken, that they are whole and the folder's own. Imports nothing heavy."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from omnitune.config.experiment.model import ModelOptions
from omnitune.io.model_files.part_configs import read_part
from omnitune.io.model_files.tokenizer import SETTINGS_FILE, read_tokenizer, tokenizer_folder
from omnitune.io.model_files.weights import require_json, require_weights
from omnitune.io.places import is_local
from omnitune.paths import require_safe

DEMO = "demo"
INDEX = "model_index.json"
WEIGHTED = ("transformer", "vae", "mllm")
PARTS = (*WEIGHTED, "processor", "scheduler")


PATH_KEY, VAE_KEY, ENCODER_KEY = (
    f"model.{key}"
    for key in (
        "pretrained_model_path",
        "pretrained_vae_model_name_or_path",
        "pretrained_text_encoder_model_name_or_path",
    )
)


def taken_parts(model: ModelOptions) -> list[str]:
    """The parts of the base pipeline that are taken, as the options name no others for them."""
    replaced = ["vae"] if model.pretrained_vae_model_name_or_path else []
    replaced += ["mllm", "processor"] if model.pretrained_text_encoder_model_name_or_path else []
    return [part for part in PARTS if part not in replaced]


def check_named(model: ModelOptions) -> None:
    """Looks at all that options name of a base model on this machine, as far as headers say whether it is whole.

    Raises:
        ValueError: for a path that does not exist, a part that is missing, or a damaged file.
    """
    base, vae, encoder = (
        model.pretrained_model_path,
        model.pretrained_vae_model_name_or_path,
        model.pretrained_text_encoder_model_name_or_path,
    )
    if base != DEMO and is_local(base, PATH_KEY):
        check_parts(Path(base), taken_parts(model), PATH_KEY)
    if vae and is_local(vae, VAE_KEY):
        check_vae(Path(vae), model.vae_subfolder)
    if encoder and is_local(encoder, ENCODER_KEY):
        check_encoder(Path(encoder), ENCODER_KEY)


def require_parts(folder: Path, parts: Sequence[str], key: str) -> None:
    """Raises ValueError, naming the key, for a pipeline folder that lacks some of its parts."""
    wanted = [*([INDEX] if len(parts) > 1 else []), *parts]
    missing = [part for part in wanted if not (folder / part).exists()]
    if missing and len(parts) > 1 and (folder / "config.json").is_file():
        raise ValueError(
            f"{key}: {folder} is a folder of weights, no pipeline. Name its base pipeline there, and this folder as "
            "model.transformer_path."
        )
    if missing:
        raise ValueError(f"{key}: {folder} lacks {', '.join(missing)}; it is not a folder in the published layout.")


def check_parts(folder: Path, parts: Sequence[str], key: str) -> None:
    """The same for one that lacks some, or in which files are damaged."""
    require_parts(folder, parts, key)
    try:
        for part in parts:
            (require_weights if part in WEIGHTED else require_json)(folder / part)
            if part != "processor":
                read_part(folder / part, part)
        source = tokenizer_folder(folder)
        if source.name in parts and (source / SETTINGS_FILE).is_file():
            read_tokenizer(source)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def check_vae(folder: Path, subfolder: str | None) -> Path:
    """The VAE in a subfolder, or in the folder itself; ValueError where there is none, or a file is damaged."""
    found = folder / (subfolder or "")
    if not (found / "config.json").is_file():
        raise ValueError(
            f"{VAE_KEY}: {found} lacks config.json; model.vae_subfolder says where in {folder} the VAE is."
        )
    try:
        require_weights(found)
        read_part(found, "vae")
    except ValueError as error:
        raise ValueError(f"{VAE_KEY}: {error}") from None
    return found


def check_encoder(folder: Path, key: str) -> None:
    """The same of a folder that is a text encoder with its tokenizer."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{key}: {folder} lacks config.json; it is not a folder of a text encoder.")
    try:
        require_weights(folder)
        read_part(folder, "mllm")
        if (folder / SETTINGS_FILE).is_file():
            read_tokenizer(folder)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def local_files(name: str) -> list[Path]:
    """The files of `model.pretrained_model_path` that are copied, sorted; none where it is no local folder.

    Raises:
        ValueError: for a name that may not reach a job, and as of require_own.
    """
    folder = Path(name)
    if name == DEMO or not folder.is_dir():
        return []
    files = [path for part in (INDEX, *PARTS) for path in walk(folder / part)]
    for path in files:
        require_safe(path, f"model.pretrained_model_path: {name!r}")
        require_own(path, folder)
    return sorted(files)


def walk(place: Path) -> Iterator[Path]:
    """A file, or all that lies in a folder, hidden files left out; linked folders are not entered."""
    if not place.is_dir() or place.is_symlink():
        if os.path.lexists(place):
            yield place
        return
    for entry in place.iterdir():
        if not entry.name.startswith("."):
            yield from walk(entry)


def require_own(path: Path, folder: Path) -> None:
    """Raises ValueError for what is no file, or a link out of its folder: copied, it would bring private files along.

    The links of a download cache, from snapshots/{revision}/ to blobs/ beside it, are its own.
    """
    target, home = path.resolve(), folder.resolve()
    roots = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError(
            f"{path}: is a link to {target}, outside of {folder}, which is not followed. Put the file itself there."
        )
    if not target.is_file():
        kind = "a link to nothing" if not target.exists() else "no plain file"
        kind = "a link to a folder" if target.is_dir() else kind
        raise ValueError(f"{path}: is {kind}. A base model consists of plain files; take it out or put a file there.")

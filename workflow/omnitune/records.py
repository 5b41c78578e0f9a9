"""What Snakemake keeps in .snakemake of the files that jobs make: one record for each, named after the file."""

import base64
from pathlib import Path

SNAKEMAKE = Path(".snakemake")
METADATA, INCOMPLETE = SNAKEMAKE / "metadata", SNAKEMAKE / "incomplete"  # of files that are made, and are being made
NAME_LIMIT = 255  # bytes of a file's name


def list_records(folder: Path) -> dict[str, Path]:
    """The records in METADATA or INCOMPLETE, by the file that each is of; what is no record is left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found[_recorded(path.relative_to(folder))] = path
        except ValueError:
            continue
    return found


def _recorded(path: Path) -> str:
    """The file that a record is of: its name is cut to fit file names, with an `@` before all parts but the last."""
    return base64.urlsafe_b64decode("".join(part.removeprefix("@") for part in path.parts)).decode()


def record_path(output: str) -> Path:
    """The inverse: where the record of a file lies, in its folder."""
    text, size = base64.urlsafe_b64encode(output.encode()).decode(), NAME_LIMIT - 1
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return Path(*(f"@{part}" for part in parts[:-1]), parts[-1])


def is_locked() -> bool:
    """Whether Snakemake runs in this folder, or was killed there."""
    return any(SNAKEMAKE.glob("locks/*"))

"""What an evaluation has left, and whether it still is what was written. Imports nothing heavy."""

from pathlib import Path
from typing import Any

from omnitune.io.files import is_whole, sha256_of
from omnitune.io.json_object import checked
from omnitune.io.kept import Drawn, Kept, Scores, read_kept, read_kept_lines
from omnitune.io.places import is_below
from omnitune.paths import GENERATIONS_FILE, SCORES_FILE


def read_scores(folder: Path, model: type[Scores] = Scores) -> dict[str, Any]:
    """scores.json of evaluation/{step}/{benchmark}; ValueError where it is missing, was changed or is no such model."""
    path = folder / SCORES_FILE
    scores = read_kept(path, Kept, _score_again(folder))
    if not is_whole(scores):
        raise ValueError(f"{path}: was changed after it was written. {_score_again(folder)}")
    checked(path, scores, model, _score_again(folder))
    return scores


def read_generations(folder: Path, scores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of generations.jsonl by key; ValueError where they or their images are not those that were scored.

    The row of an image that failed has `image` null, and says why (`failed`).
    """
    path = folder / GENERATIONS_FILE
    if not path.is_file() or sha256_of(path) != scores["generations_sha256"]:
        problem = "was changed after it was written" if path.is_file() else "is missing"
        raise ValueError(f"{path}: {problem}. {_score_again(folder)}")
    rows = list(read_kept_lines(path, Drawn, _score_again(folder)))
    for row in rows:
        require_drawn(folder, row)
    return {row["key"]: row for row in rows}


def require_drawn(folder: Path, row: dict[str, Any]) -> None:
    """Raises ValueError where a row's image is not there, is another, or is not its own; one that failed has none."""
    if row["image"] is not None:
        require_own_image(folder, row)
        require_image(folder / row["image"], row["sha256"])


def require_own_image(folder: Path, row: dict[str, Any]) -> None:
    """Raises ValueError where a row names another file than its own image, which the report would show."""
    own = f"images/{row['key']}.png"
    if row["image"] != own or not is_below(folder / own, folder):
        raise ValueError(
            f"{folder}: the row of {row['key']!r} names {row['image']!r}, which is not its own image {own}."
        )


def require_image(path: Path, sha256: str) -> None:
    """Raises ValueError where an image is not the one that was drawn; path is {evaluation}/images/{key}.png."""
    folder = path.parents[1] / "parts"
    parts = sorted(folder.glob("[0-9]*.jsonl")) or [folder / "0.jsonl"]
    fix = "Draw it again: snakemake --cores 2 --force " + " ".join(map(str, parts))
    if not path.is_file():
        raise ValueError(f"{path}: is missing. {fix}")
    if sha256_of(path) != sha256:
        raise ValueError(f"{path}: is not the image that was drawn (its SHA-256 differs). {fix}")


def _score_again(folder: Path) -> str:
    return f"Score again: snakemake --cores 2 --force {folder / SCORES_FILE}"

"""JSON that stages have left for others, and that may have been changed, cut off or passed around since."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from omnitune.io.files import open_regular
from omnitune.io.json_object import MAX_NESTING, checked, is_deeper, parse_json, read_json

LARGEST = 1 << 28  # bytes of a file, and of a line; scores of the largest benchmarks have some ten million
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Counts = dict[str, Count]


class Kept(BaseModel):
    """Keys that readers rely on, as far as they are there; others stay as they are."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Mixed(Kept):
    source: str
    asked: float
    realised: float
    worst_window: float = 0.0
    samples: Count
    passes: float = 0.0
    pixels: Count = 0
    tokens: Count = 0


class Trained(Kept):
    """train.json of an experiment."""

    final_step: Count | None = None
    checkpoints: list[Count] = []
    states: dict[str, str] = {}
    strategy_reason: str | None = None
    mixture: list[_Mixed] = []
    identity: dict[str, Any] = {}


class Ended(Trained):
    """The same, of which the last step is needed."""

    final_step: Count


class Metrics(Kept):
    """A row of logs/metrics.jsonl: its step, and figures, which are numbers but for those that are named here."""

    __pydantic_extra__: dict[str, bool | float | None]

    step: Count
    loss_by_timestep: list[float | None] | None = None
    val_loss_by_task: dict[str, float | None] | None = None


class Start(Kept):
    """A line of logs/starts.jsonl."""

    time: Annotated[str, AfterValidator(datetime.fromisoformat)]
    first_step: Count
    device: str
    processes: Count


class Shown(Kept):
    """A line of logs/samples/prompts.jsonl: a prompt that is drawn while training."""

    key: str
    instruction: str
    inputs: list[str]


class _File(Kept):
    sha256: str
    bytes: Count = 0


class Conversion(Kept):
    """conversion.json of converted weights."""

    checkpoint_sha256: str | None = None
    files: dict[str, _File]


class _Source(Kept):
    rows: Count
    accepted: Count
    rejected: Count
    reasons: Counts


class Summary(Kept):
    """summary.json of a validation: totals, counts by label, and those of each source."""

    __pydantic_extra__: dict[str, Count | Counts | str | None]

    files: list[str] = []
    sources: dict[str, _Source] = {}


class _Weights(Kept):
    base: str
    transformer: str | None
    lora: str | None
    lora_scale: float = 1.0
    sha256: str


class Scores(Kept):
    """scores.json of an evaluation."""

    protocol: str = ""
    generations_sha256: str
    per_prompt: list[dict[str, Any]] = []


class Reported(Scores):
    """The same, as a report needs it."""

    protocol: str
    weights: _Weights


class Drawn(Kept):
    """A row of generations.jsonl, and of the parts that it is put together from."""

    key: str
    protocol: str = ""
    weights: dict[str, Any] = {}
    image: str | None
    sha256: str | None = None


class Judged(Kept):
    """A line of judgements/{judge}.jsonl."""

    key: str
    sha256: str | None
    judge: str


def read_kept(path: Path, model: type[Kept] = Kept, fix: str = "") -> dict[str, Any]:
    """The JSON object of a file, as it stands there.

    Args:
        path: of the file.
        model: what its keys must be.
        fix: a sentence that says what to do where it is damaged; of what a rule writes, to write it again.

    Raises:
        ValueError: with the file, and with the key where a value is of another kind.
    """
    fix = fix or f"Fetch it again, or write it again: snakemake --cores 2 --force {path}"
    return _looked_at(str(path), read_json(path, LARGEST, fix), model, fix)


def read_kept_lines(
    path: Path, model: type[Kept] = Kept, fix: str = "", whole: bool = True
) -> Iterator[dict[str, Any]]:
    """The JSON objects of the lines of a file that are not blank; arguments and errors as of `read_kept`.

    Args:
        path, model, fix: as there.
        whole: False where a process may be writing, or was killed at it: a last line without an end is left out.
    """
    fix = fix or "Take the line out, or fetch the file again."
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LARGEST):
            number += 1
            if not line.strip() or not (whole or line.endswith(b"\n")):
                continue
            try:
                content = parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: cannot be read: {error}. {fix}") from None
            yield _looked_at(f"{path}:{number}", content, model, fix)


def _looked_at(where: str, content: dict[str, Any], model: type[Kept], fix: str) -> dict[str, Any]:
    if is_deeper(content, MAX_NESTING):
        raise ValueError(f"{where}: cannot be read: it is nested more than {MAX_NESTING} levels deep. {fix}")
    checked(where, content, model, fix)
    return content

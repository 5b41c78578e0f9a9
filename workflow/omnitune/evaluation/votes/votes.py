"""Which of two images people prefer: pairs to show, the file of votes, and how often one row won."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from omnitune.config.base import Section, check_config
from omnitune.evaluation.prompts import SAFE_KEY
from omnitune.evaluation.results import read_generations, read_scores
from omnitune.io.files import json_line
from omnitune.io.jsonl import read_objects
from omnitune.paths import EVALUATION, SCORES_FILE, EvaluatedStep

Choice = Literal["left", "right", "tie"]


class Side(Section):
    """An image that was shown: whose it is, and its SHA-256."""

    experiment: str
    step: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Vote(Section):
    """A line of votes/{benchmark}.jsonl."""

    time: str
    key: Annotated[str, Field(pattern=SAFE_KEY.pattern)]
    left: Side
    right: Side
    choice: Choice


@dataclass(frozen=True)
class Pair:
    """Two images of one prompt.

    Attributes:
        key, instruction: of the prompt.
        images: files of the two.
        sides: what a vote notes of them.
    """

    key: str
    instruction: str
    images: tuple[Path, Path]
    sides: tuple[Side, Side]

    def turned(self) -> "Pair":
        """The same with left and right exchanged."""
        return Pair(self.key, self.instruction, (self.images[1], self.images[0]), (self.sides[1], self.sides[0]))


@dataclass(frozen=True)
class Preference:
    """How often a row was preferred to another.

    Attributes:
        wins, losses, ties: votes.
        low, high: ends of the 95 % interval (Wilson) of its share of the decided votes; None without any.
    """

    wins: int
    losses: int
    ties: int
    low: float | None
    high: float | None

    @classmethod
    def of(cls, choices: Iterable[int]) -> "Preference":
        """From 1 for a vote for it, -1 for one against it and 0 for a tie."""
        from scipy.stats import binomtest

        found = list(choices)
        wins, losses, ties = (found.count(value) for value in (1, -1, 0))
        if not wins + losses:
            return cls(wins, losses, ties, None, None)
        interval = binomtest(wins, wins + losses).proportion_ci(method="wilson")
        return cls(wins, losses, ties, float(interval.low), float(interval.high))

    @property
    def votes(self) -> int:
        """How many there are."""
        return self.wins + self.losses + self.ties

    def __str__(self) -> str:
        decided, undecided = self.wins + self.losses, f"{self.ties} {'tie' if self.ties == 1 else 'ties'}"
        if self.low is None or self.high is None:
            return f"no decided vote, {undecided}"
        share = f"{100 * self.wins / decided:.0f} %, 95 % interval {100 * self.low:.0f} to {100 * self.high:.0f} %"
        return f"{self.wins} of {decided} decided votes ({share}), {undecided}"


def evaluated_folder(name: str, benchmark: str) -> tuple[str, EvaluatedStep, Path]:
    """Experiment, step (or its last) and folder of a row, `demo` or `demo:120`. ValueError where there is none."""
    experiment, _, text = name.partition(":")
    folder = Path(EVALUATION.format(experiment=experiment, step="{step}", benchmark=benchmark))
    steps = [
        EvaluatedStep.parse(path.parents[1].name) for path in folder.parents[1].glob(f"*/{benchmark}/{SCORES_FILE}")
    ]
    if not steps:
        raise ValueError(
            f"{name}: experiment {experiment!r} has no scores of benchmark {benchmark!r}; evaluate it first."
        )
    step = EvaluatedStep.parse(text) if text else max(steps)
    if step not in steps:
        raise ValueError(
            f"{name}: step {step} was not evaluated on {benchmark!r}; there are {', '.join(map(str, sorted(steps)))}."
        )
    return experiment, step, Path(str(folder).format(step=step))


@dataclass(frozen=True)
class _ShownRow:
    experiment: str
    step: EvaluatedStep
    folder: Path
    protocol: str
    generations: dict[str, dict[str, Any]]

    def side(self, key: str) -> Side:
        return Side(experiment=self.experiment, step=str(self.step), sha256=self.generations[key]["sha256"])

    def image(self, key: str) -> Path:
        return self.folder / str(self.generations[key]["image"])


def _shown_row(name: str, benchmark: str) -> _ShownRow:
    experiment, step, folder = evaluated_folder(name, benchmark)
    scores = read_scores(folder)
    return _ShownRow(experiment, step, folder, scores.get("protocol", ""), read_generations(folder, scores))


def pairs_of(one: str, other: str, benchmark: str) -> list[Pair]:
    """The images of two rows by prompt, where they differ.

    Raises:
        ValueError: where a row is not there, its images were changed, or the two were drawn under different protocols.
    """
    ours, theirs = (_shown_row(name, benchmark) for name in (one, other))
    if ours.protocol != theirs.protocol:
        raise ValueError(
            f"{one} and {other}: were drawn under different protocols of {benchmark!r}; evaluate both again."
        )
    pairs = []
    for key, row in ours.generations.items():
        if None in (row["image"], theirs.generations[key]["image"]):
            continue  # one failed
        sides = ours.side(key), theirs.side(key)
        if sides[0].sha256 != sides[1].sha256:
            pairs.append(Pair(key, row["instruction"], (ours.image(key), theirs.image(key)), sides))
    return pairs


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file, none where it is not there; ValueError, with file and line, for what is no vote."""
    if not path.is_file():
        return []
    return [check_config(content, Vote, f"{path}:{number}") for number, content in read_objects(path)]


def undecided(pairs: Sequence[Pair], votes: Iterable[Vote]) -> list[Pair]:
    """Pairs of images that nobody has voted on."""
    done = {(vote.key, frozenset((vote.left.sha256, vote.right.sha256))) for vote in votes}
    return [pair for pair in pairs if (pair.key, frozenset(side.sha256 for side in pair.sides)) not in done]


def append_vote(path: Path, pair: Pair, choice: Choice) -> None:
    """Adds a vote on a pair, as it was shown, to a file."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    vote = Vote(time=now, key=pair.key, left=pair.sides[0], right=pair.sides[1], choice=choice)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json_line(json.loads(vote.model_dump_json())))
        file.flush()
        os.fsync(file.fileno())


def preference(votes: Iterable[Vote], ours: Mapping[str, str], theirs: Mapping[str, str]) -> Preference:
    """How often images of one row were preferred to those of another; both are SHA-256 by prompt."""
    choices = []
    for vote in votes:
        sides = vote.left.sha256, vote.right.sha256
        for mine, other, won in ((*sides, "left"), (*reversed(sides), "right")):
            if (ours.get(vote.key), theirs.get(vote.key)) == (mine, other):
                choices.append(0 if vote.choice == "tie" else 1 if vote.choice == won else -1)
    return Preference.of(choices)

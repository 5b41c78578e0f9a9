"""Judges' scores of a benchmark's images: asked once and kept, summed up, and compared with those of people."""

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

from pydantic import Field, ValidationError

from omnitune.config.base import PathText, Section, check_config
from omnitune.config.benchmarks.judge import Judge
from omnitune.config.choices import JUDGED, judge_measure
from omnitune.console import Progress
from omnitune.evaluation.judges.client import Endpoint, ask_all
from omnitune.evaluation.judges.prompt import FORMAT, SYSTEM, Answer, MissingError, Part, parts_of
from omnitune.evaluation.prompts import Prompt, open_image
from omnitune.io.files import is_whole, json_line, sealed, sha256_of, write_json, write_text
from omnitune.io.jsonl import read_objects
from omnitune.io.kept import Judged, read_kept_lines

logger = logging.getLogger("omnitune")

Row = dict[str, Any]


class Label(Section):
    """A line of a judge's `labels`: what a person gave an image."""

    image: Annotated[PathText, Field(min_length=1)]
    instruction: float | None = None
    quality: float | None = None


@dataclass(frozen=True)
class _Question:
    """A name of its own, the key of the image, where its answer is kept, and what makes its parts."""

    name: str
    key: str
    place: Path
    parts: Callable[[], list[Part]]


def judge_hash(judge: Judge) -> str:
    """Hex sha256 of what a judge's answers depend on, beside prompts and images."""
    content = {"format": FORMAT, "system": SYSTEM, **judge.asked}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def judge_images(
    judge: Judge,
    prompts: Sequence[Prompt],
    rows: Sequence[Row],
    folder: Path,
    output: Path,
    answers: Path,
    pause: float = 1.0,
) -> None:
    """Asks a judge about all images of an evaluation and writes its judgements; kept answers are not asked for again.

    Args:
        judge: who.
        prompts, rows: what was asked of the model, and its images: rows of parts/{part}.jsonl, in one order.
        folder: evaluation/{step}/{benchmark}, where the images lie.
        output: the .jsonl to write: a line for each image with its key, hash, answers and the reasons of missing ones.
        answers: folder that keeps answers, by the hash of what was asked.
        pause: see Endpoint.

    Raises:
        ValueError: see Endpoint and load_judge.
    """
    questions = _questions(judge, prompts, rows, folder, answers)
    found = _answered(judge, questions, pause)
    by_key: dict[str, list[Answer | MissingError]] = {row["key"]: [] for row in rows}  # nothing of an image that failed
    for question in questions:
        by_key[question.key].append(found[question.name])
    lines = [_line(judge, row, by_key[row["key"]]) for row in rows]
    write_text(output, "".join(map(json_line, lines)))
    missing = sum(len(line["missing"]) for line in lines)
    if missing:
        logger.warning(
            "judge %s: %d of %d answers are missing. To ask for them again: snakemake --cores 2 --force %s",
            *(judge.name, missing, len(questions), output),
        )


def _answered(judge: Judge, questions: Sequence[_Question], pause: float) -> dict[str, Answer | MissingError]:
    """The answer to each question, by its name: the kept one, or the judge's, which is then kept."""
    found: dict[str, Answer | MissingError] = {
        question.name: answer for question in questions if (answer := _kept(question.place)) is not None
    }
    left = {question.name: question for question in questions if question.name not in found}
    with Progress(f"judge {judge.name}", len(questions), "answers", len(found)) as progress:

        def take(name: str, answer: Answer | MissingError) -> None:
            found[name] = answer
            if isinstance(answer, Answer):
                write_json(left[name].place, answer.model_dump(mode="json"))
            progress.advance(1)

        asked = {name: question.parts for name, question in left.items()}
        if left and judge.base_url is None:
            from omnitune.evaluation.judges.local import load_judge

            model = load_judge(judge)
            for name, parts in asked.items():
                take(name, model.answer(parts(), seed=int(left[name].place.stem[:15], 16)))
        elif left:
            asyncio.run(ask_all(Endpoint(judge, pause, accepted=len(left) < len(questions)), asked, take))
    return found


def read_judgements(judge: Judge, path: Path, rows: Sequence[Row]) -> list[Row]:
    """The lines of a judge's file, in the order of an evaluation's rows; ValueError where they are of others."""
    fix = f"Judge again: snakemake --cores 2 --force {path}"
    if not path.is_file():
        raise ValueError(f"{path}: is missing. {fix}")
    lines = {line["key"]: line for line in read_kept_lines(path, Judged, fix)}
    for row in rows:
        line = lines.get(row["key"])
        if line is None or line["sha256"] != row["sha256"]:
            raise ValueError(f"{path}: has no judgement of the image {row['image']} that is there now. {fix}")
        if line["judge"] != judge_hash(judge) or not is_whole(line):
            raise ValueError(f"{path}: was changed, or judged under other settings of {judge.name!r}. {fix}")
    return [lines[row["key"]] for row in rows]


def judged_measures(judge: Judge, line: Row) -> dict[str, float]:
    """The measures of an image by a judge, means over its answers; none where there is no answer."""
    answers = line["answers"]
    return {
        judge_measure(judge.name, score): round(fmean(answer[score] for answer in answers), 6)
        for score in JUDGED
        if answers
    }


def summed_up(judge: Judge, lines: Sequence[Row]) -> dict[str, Any]:
    """What is said of a judge beside its means: model, questions, missing answers by reason, spread, agreement.

    The spread is the mean over images of the standard deviation of repeated answers; None without repetitions.
    """
    return {
        "model": judge.model,
        "asked": sum(len(line["answers"]) + len(line["missing"]) for line in lines),
        "missing": dict(sorted(Counter(reason for line in lines for reason in line["missing"]).items())),
        "spread": {score: _spread(lines, score) for score in JUDGED},
        "agreement": _agreement(judge, lines) if judge.labels else None,
    }


def read_labels(path: Path) -> dict[str, Label]:
    """People's scores by the SHA-256 of the image; ValueError, with file and line, for what is wrong."""
    labels = {}
    for number, content in read_objects(path):
        label = check_config(content, Label, f"{path}:{number}")
        found = next((place for place in (Path(label.image), path.parent / label.image) if place.is_file()), None)
        if found is None:
            raise ValueError(f"{path}:{number}: image: {label.image!r} does not exist.")
        labels[sha256_of(found)] = label
    return labels


def agreement(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | int | None]:
    """How alike two lists of scores order images: Kendall's tau-b, and the share of pairs that both order alike.

    Of pairs that people tell apart; one that the judge scores alike counts half. None where there is no such pair.
    """
    from scipy.stats import kendalltau

    pairs = [(a, b) for a, b in combinations(range(len(ours)), 2) if theirs[a] != theirs[b]]
    if not pairs:
        return {"n": len(ours), "kendall": None, "pairs": 0, "accuracy": None}
    right = sum(0.5 if ours[a] == ours[b] else float((ours[a] > ours[b]) == (theirs[a] > theirs[b])) for a, b in pairs)
    tau = float(kendalltau(ours, theirs).statistic) if len(set(ours)) > 1 else None
    rounded = None if tau is None else round(tau, 6)
    return {"n": len(ours), "kendall": rounded, "pairs": len(pairs), "accuracy": round(right / len(pairs), 6)}


def _questions(
    judge: Judge, prompts: Sequence[Prompt], rows: Sequence[Row], folder: Path, answers: Path
) -> list[_Question]:
    """What a judge is asked: of each image, as often as it is repeated."""
    drawn = [(prompt, row) for prompt, row in zip(prompts, rows, strict=True) if row["image"] is not None]
    return [
        _Question(
            name=f"{row['key']} {repeat}",
            key=row["key"],
            place=answers / f"{_question_hash(judge, prompt, row, repeat)}.json",
            parts=partial(_parts, judge, prompt, folder / row["image"]),
        )
        for prompt, row in drawn
        for repeat in range(judge.repeats)
    ]


def _question_hash(judge: Judge, prompt: Prompt, row: Row, repeat: int) -> str:
    """Of what a judge is asked: the images, the instruction, how it is asked and who."""
    images = [sha256_of(path) for path in prompt.input_images] + [row["sha256"]]
    asked = {**judge.asked, "repeats": repeat}
    content = {"format": FORMAT, "system": SYSTEM, "images": images, "instruction": prompt.instruction, "judge": asked}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parts(judge: Judge, prompt: Prompt, image: Path) -> list[Part]:
    inputs = [open_image(path) for path in prompt.input_images]
    return parts_of(prompt.instruction, inputs, open_image(image), judge.max_side)


def _kept(place: Path) -> Answer | None:
    """An answer that is kept; None where there is none, or none that can be read, so that it is asked for again."""
    try:
        return Answer.model_validate_json(place.read_bytes())
    except (OSError, ValidationError):
        return None


def _line(judge: Judge, row: Row, found: Sequence[Answer | MissingError]) -> Row:
    answers = [one.model_dump(mode="json") for one in found if isinstance(one, Answer)]
    missing = [one.reason for one in found if isinstance(one, MissingError)]
    facts = {"key": row["key"], "sha256": row["sha256"], "judge": judge_hash(judge)}
    return sealed({**facts, "answers": answers, "missing": missing})


def _spread(lines: Sequence[Row], score: str) -> float | None:
    repeated = [[answer[score] for answer in line["answers"]] for line in lines if len(line["answers"]) > 1]
    return round(fmean(map(stdev, repeated)), 6) if repeated else None


def _agreement(judge: Judge, lines: Sequence[Row]) -> dict[str, Any]:
    assert judge.labels
    labels = read_labels(Path(judge.labels))
    judged: Mapping[str, dict[str, float]] = {line["sha256"]: judged_measures(judge, line) for line in lines}
    found = {}
    for score in JUDGED:
        pairs = [
            (measures[judge_measure(judge.name, score)], float(getattr(labels[sha256], score)))
            for sha256, measures in sorted(judged.items())
            if measures and sha256 in labels and getattr(labels[sha256], score) is not None
        ]
        found[score] = agreement([ours for ours, _ in pairs], [theirs for _, theirs in pairs])
    return found

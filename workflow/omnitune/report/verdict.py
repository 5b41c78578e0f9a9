"""What a report answers: did training help, by which interval, what was forgotten, and which checkpoint to take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnitune.config.choices import MEASURES
from omnitune.evaluation.statistics import NO_DIFFERENCE, Comparison, compare
from omnitune.paths import BASE, EvaluatedStep
from omnitune.report.collect import Evaluation
from omnitune.report.data import thousands
from omnitune.report.scores import (
    ALL,
    MOST_PROMPTS,
    Score,
    primary_of,
    show,
    show_change,
    show_interval,
    tasks_of,
    values_of,
)


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best mean of the primary measure, over the prompts that all of them have.

    Attributes:
        step: which; the newest of several that are equal.
        last: the newest as it was trained, against it, by an interval for the choice among `count`; None where it is
            the same.
        count: how many checkpoints were compared.
    """

    step: EvaluatedStep
    last: Comparison | None
    count: int


def best_of(evaluation: Evaluation) -> Best | None:
    """The best checkpoint of a benchmark; None where there is nothing to choose from."""
    steps, measure = evaluation.checkpoints, primary_of(evaluation)
    if not steps or measure is None:
        return None
    values, measured = values_of(evaluation, steps, measure)
    everywhere = np.isfinite(values).all(axis=0)
    if not everywhere.any():
        return None
    higher = MEASURES[measure].higher_is_better
    means = values[:, everywhere].mean(axis=1) * (1 if higher else -1)
    best = max(range(len(steps)), key=lambda number: (means[number], steps[number] == evaluation.last, number))
    if steps[best] == evaluation.last:
        return Best(steps[best], None, len(steps))
    last = values[[steps.index(evaluation.last)]]
    [against] = compare(last, values[best], measured, higher, among=len(steps) - 1)
    return Best(steps[best], against, len(steps))


def step_to_take(evaluations: Sequence[Evaluation]) -> EvaluatedStep | None:
    """The last checkpoint, or one that is shown better than it on some benchmark and worse on none.

    By intervals for the choice among all of them: of many checkpoints some seem better by chance.
    """
    if not evaluations or evaluations[0].last == BASE:
        return None
    last = evaluations[0].last
    others = [step for step in evaluations[0].checkpoints if step != last]
    found = [_against(evaluation, others, last) for evaluation in evaluations] if others else []
    words = {step: [verdicts[step] for verdicts in found if verdicts] for step in others}
    wins = {step: said.count("better") for step, said in words.items() if "worse" not in said}
    return max(wins, key=lambda step: (wins[step], step)) if any(wins.values()) else last


def taking(step: EvaluatedStep, evaluations: Sequence[Evaluation], lines: Sequence[Score]) -> str:
    """The sentence before the command that draws with a checkpoint, by its verdicts against the base."""
    primary = {evaluation.entry.name: primary_of(evaluation) for evaluation in evaluations}
    own = [x for x in lines if (x.step, x.task, x.measure) == (step, ALL, primary[x.benchmark])]
    words = {line.benchmark: line.against_base.verdict for line in own}
    worse = [name for name, word in words.items() if word == "worse"]
    but = f", which is worse than the base on {', '.join(worse)}" if worse else ""
    if "better" in words.values():
        return f"Take {step.label}{but}:"
    return (
        f"No checkpoint to take is shown: {step.label}{but or ', which is not shown to be better than the base'}, "
        "draws with"
    )


def _against(evaluation: Evaluation, steps: Sequence[EvaluatedStep], last: EvaluatedStep) -> dict[EvaluatedStep, str]:
    """The verdict on each step against the last one; empty where nothing is measured."""
    measure = primary_of(evaluation)
    if measure is None:
        return {}
    values, measured = values_of(evaluation, [*steps, last], measure)
    compared = compare(values[:-1], values[-1], measured, MEASURES[measure].higher_is_better, among=len(steps))
    return {step: found.verdict for step, found in zip(steps, compared, strict=True)}


def verdict(evaluation: Evaluation, lines: Sequence[Score]) -> dict[str, str]:
    """The benchmark's name, a word, and a sentence on the primary measure of the newest step as it was trained."""
    name, measure = evaluation.entry.name, primary_of(evaluation)
    if evaluation.last == BASE:
        return _no_verdict(name, "base", "only the base was evaluated, there is nothing to compare.")
    if measure is None:
        return _no_verdict(name, "unscored", "no prompt has a target or a check, so that there are no scores.")
    line = _line(lines, ALL, measure, evaluation.last)
    if line is None or not line.against_base.n:
        return _no_verdict(
            name, "unscored", f"{MEASURES[measure].label}, the primary measure, was measured on no prompt."
        )
    text = f"{sentence(line)}, {line.row}{_needed(line.against_base)}.{_best_sentence(evaluation, measure)}"
    return {"word": line.against_base.verdict, "name": name, "text": text}


def answer(evaluations: Sequence[Evaluation], lines: Sequence[Score]) -> str:
    """One sentence over all benchmarks: what is shown, with its interval, and where no difference is."""
    parts: dict[str, list[str]] = {}
    for evaluation in evaluations:
        measure = primary_of(evaluation)
        own = [line for line in lines if line.benchmark == evaluation.entry.name]
        line = _line(own, ALL, measure, evaluation.last) if measure and evaluation.last != BASE else None
        if line is None or not line.against_base.n:
            continue
        shown = line.against_base.verdict != NO_DIFFERENCE
        text = f"{line.benchmark} ({sentence(line)})" if shown else line.benchmark
        parts.setdefault(line.against_base.verdict, []).append(text)
    said = [f"{word} on {', '.join(parts[word])}" for word in ("better", "worse", NO_DIFFERENCE) if word in parts]
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def sentence(line: Score) -> str:
    """A line as "picture right 0 → 93 %, +93 points [+87, +98] on 60 prompts"."""
    found, measure = line.against_base, line.measure
    interval = show_interval(measure, found.interval, sign=True)
    missing = f" ({thousands(found.missing)} more missing)" if found.missing else ""
    change = f"{show_change(measure, found.difference)}{f' {interval}' if interval else ''}"
    return (
        f"{MEASURES[measure].label} {show(measure, found.base_mean)} → {show(measure, found.mean)}, {change} "
        f"on {thousands(found.n)} prompts{missing}"
    )


def forgetting(evaluations: Sequence[Evaluation], lines: Sequence[Score], trained: Mapping[str, int]) -> list[Score]:
    """Lines of the primary measure, of each checkpoint on tasks that no sample of the training has.

    Args:
        evaluations, lines: of the report.
        trained: samples of the training by task; where it is empty, that is not known.
    """
    found = []
    for evaluation in evaluations if trained else ():
        measure, tasks = primary_of(evaluation), tasks_of(evaluation)
        types = [(prompt.task, prompt.task_type) for prompt in evaluation.entry.prompts]
        new = {task for task, kind in types if not trained.get(kind)}
        if len(tasks) == 1 and new:
            new = {ALL}
        own = (line for line in lines if line.benchmark == evaluation.entry.name and line.measure == measure)
        found += [line for line in own if line.task in new and line.step.number]
    return found


def _line(lines: Sequence[Score], task: str, measure: str, step: EvaluatedStep) -> Score | None:
    return next((x for x in lines if (x.task, x.measure, x.step) == (task, measure, step)), None)


def _needed(found: Comparison) -> str:
    if found.verdict != NO_DIFFERENCE:
        return ""
    if math.isnan(found.interval.low):
        return "; these are too few for an interval"
    if found.prompts_needed is None:
        return ""
    if found.prompts_needed > MOST_PROMPTS:
        return f"; more than {thousands(MOST_PROMPTS)} prompts would be needed to show half of it"
    return f"; {thousands(found.prompts_needed)} prompts would show half of it"


def _best_sentence(evaluation: Evaluation, measure: str) -> str:
    best = best_of(evaluation)
    if best is None or best.last is None:
        return f" It is the best of {best.count} checkpoints." if best and best.count > 1 else ""
    change = show_change(measure, best.last.difference)
    interval = show_interval(measure, best.last.interval, sign=True)
    told = {"worse": "worse than that", "better": "better than that", NO_DIFFERENCE: "not shown to be worse"}
    by = " ".join(filter(None, (change, interval)))
    wider = f"; the interval allows for a choice among {best.count}" if best.count > 2 and interval else ""
    return f" The best of {best.count} is {best.step.label}; the last is {told[best.last.verdict]} ({by}{wider})."


def _no_verdict(name: str, word: str, text: str) -> dict[str, str]:
    return {"word": word, "name": name, "text": text}

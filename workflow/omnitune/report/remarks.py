"""What is said of a benchmark's measures beside its table: what was not measured, its judges, and people's votes."""

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from omnitune.config.choices import JUDGED, MEASURES
from omnitune.evaluation.statistics import compare
from omnitune.evaluation.votes.votes import Vote, preference
from omnitune.paths import BASE
from omnitune.report.collect import Evaluation
from omnitune.report.scores import ALL, Score, primary_of, show, values_of
from omnitune.report.verdict import sentence


def remarks(evaluation: Evaluation) -> list[str]:
    """A sentence each."""
    found = (
        _baselines(evaluation),
        _sets(evaluation),
        _not_measured(evaluation),
        _left_out(evaluation),
        _judges(evaluation),
        _votes(evaluation),
    )
    return list(dict.fromkeys(chain.from_iterable(found)))


def _baselines(evaluation: Evaluation) -> Iterator[str]:
    """The last checkpoint against each baseline, by the primary measure."""
    last = evaluation.last
    measure = primary_of(evaluation) if evaluation.baselines and last != BASE else None
    for step in evaluation.baselines if measure else ():
        assert measure
        values, measured = values_of(evaluation, [step, last], measure)
        [found] = compare(values[1:], values[0], measured, MEASURES[measure].higher_is_better)
        if found.n:
            line = Score(evaluation.entry.name, ALL, measure, last, found)
            yield f"{last.label.capitalize()} against {step.label}: {sentence(line)}: {found.verdict}."


def _sets(evaluation: Evaluation) -> Iterator[str]:
    """Figures of all images together, of all rows in one sentence."""
    rows = {step.label: evaluation.scores[step].get("sets", {}) for step in evaluation.steps}
    for measure in MEASURES.among(name for found in rows.values() for name in found):
        own = {label: found[measure] for label, found in rows.items() if measure in found}
        values = ", ".join(
            f"{label} {show(measure, facts['value'])} ({facts['n']} images)" for label, facts in own.items()
        )
        model = next(iter(own.values()))["model"]
        label = f"{MEASURES[measure].label} to the targets by {model}"
        yield f"{label}: {values}; lower is better. Of all images together: no interval, and no verdict."


def _not_measured(evaluation: Evaluation) -> Iterator[str]:
    for step in evaluation.steps:
        for measure, reason in evaluation.scores[step].get("not_measured", {}).items():
            yield f"Not measured: {MEASURES[measure].label} ({reason})."


def _left_out(evaluation: Evaluation) -> Iterator[str]:
    """What the layout for the format's own scorer lacks."""
    prompts = evaluation.entry.prompts if evaluation.entry.benchmark.export else ()
    for step in evaluation.steps if prompts else ():
        lost = {prompt.line_key for prompt in prompts if evaluation.image(step, prompt.key) is None}
        if lost:
            total = len({prompt.line_key for prompt in prompts})
            yield (
                f"Images for the official scorer, {step.label}: {len(lost)} of {total} prompts lack some that failed. "
                "Where it takes those of a prompt as one, the prompt is left out."
            )


def _judges(evaluation: Evaluation) -> Iterator[str]:
    for step in evaluation.steps:
        for name, facts in evaluation.scores[step].get("judges", {}).items():
            missing = facts["missing"]
            reasons = f" ({', '.join(f'{number} x {reason}' for reason, number in missing.items())})" if missing else ""
            counted = f"{sum(missing.values())} of {facts['asked']} answers missing{reasons}"
            told = "; ".join([counted, *_spread(facts), *_agreement(facts["agreement"] or {})])
            yield f"Judge {name} ({facts['model']}), {step.label}: {told}."


def _votes(evaluation: Evaluation) -> Iterator[str]:
    """Of each two rows between which people have chosen, of which one is here."""
    images = {step: {key: row["sha256"] for key, row in rows.items()} for step, rows in evaluation.generations.items()}
    for step, other in combinations(evaluation.steps, 2):
        found = preference(evaluation.votes, images[other], images[step])
        if found.votes:
            yield f"People preferred {other.label} to {step.label} in {found}."
    strangers = _strangers(evaluation.votes, {sha256 for found in images.values() for sha256 in found.values()})
    for name, theirs in strangers.items():
        for step in evaluation.steps:
            found = preference(evaluation.votes, images[step], theirs)
            if found.votes:
                yield f"People preferred {step.label} to {name} in {found}."


def _strangers(votes: Sequence[Vote], ours: Container[str]) -> dict[str, dict[str, str]]:
    """Rows of other experiments that were voted on: images by prompt."""
    found: dict[str, dict[str, str]] = {}
    for vote in votes:
        for side in (vote.left, vote.right):
            if side.sha256 not in ours:
                found.setdefault(f"step {side.step} of {side.experiment}", {})[vote.key] = side.sha256
    return found


def _spread(facts: Mapping[str, Any]) -> Iterator[str]:
    found = [f"{score} {facts['spread'][score]:.2f}" for score in JUDGED if facts["spread"][score] is not None]
    if found:
        yield f"deviation of repeated answers: {', '.join(found)}"


def _agreement(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for score, found in scores.items():
        if not found["pairs"]:
            yield f"{score}: no labels of people to compare with"
            continue
        kendall = "not defined" if found["kendall"] is None else f"{found['kendall']:.2f}"
        share = f"{100 * found['accuracy']:.0f} % of {found['pairs']} pairs"
        yield f"{score} against people: {share} of {found['n']} images in one order, Kendall's tau {kendall}"

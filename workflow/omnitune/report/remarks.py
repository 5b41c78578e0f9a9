"""What is said of a benchmark's measures beside its table: what was not measured, its judges, and people's votes."""

from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from omnitune.config.choices import JUDGED, MEASURES
from omnitune.evaluation.votes import Vote, preference
from omnitune.report.collect import Evaluation


def remarks(evaluation: Evaluation) -> list[str]:
    """A sentence each."""
    return list(dict.fromkeys([*_not_measured(evaluation), *_judges(evaluation), *_votes(evaluation)]))


def _not_measured(evaluation: Evaluation) -> Iterator[str]:
    for step in evaluation.steps:
        for measure, reason in evaluation.scores[step].get("not_measured", {}).items():
            yield f"Not measured: {MEASURES[measure].label} ({reason})."


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

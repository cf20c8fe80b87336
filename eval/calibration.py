"""Do confidences mean what they say: reliability bins, expected calibration error, and what a review of the least sure finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from eval.gold import Answer, Labels
from eval.metrics import NAN, mean
from eval.score import Scope

N_BINS = 10
LEAST_SURE = 0.2


@dataclass(frozen=True, slots=True)
class Decision:
    """A yes/no decision with a confidence in [0, 1].

    Attributes:
        probability: That the item is there.
        there: Whether gold has it.
        certainty: Of what was decided.
        wrong: Whether gold says otherwise.
    """

    probability: float
    there: bool
    certainty: float
    wrong: bool


@dataclass(frozen=True, slots=True)
class Bin:
    """Decisions with a probability in [low, high); the last bin holds 1 as well. Means are nan where the bin is empty."""

    low: float
    high: float
    n: int
    mean_probability: float
    share_there: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """`ece` is the mean distance of probability and share over the bins, weighted by their n; nan without decisions."""

    n: int
    bins: tuple[Bin, ...]
    ece: float


@dataclass(frozen=True, slots=True)
class Triage:
    """Errors among the least sure share of decisions against the rest. Ties at the cut share their errors evenly.

    `curve` has the share of decisions reviewed, least sure first, and the share of all errors among them.
    """

    n: int
    n_wrong: int
    share: float
    error_least_sure: float
    error_rest: float
    errors_found: float
    curve: tuple[tuple[float, float], ...]


def entity_decisions(gold: Sequence[Labels], answers: Sequence[Answer], scope: Scope) -> list[Decision]:
    """Every key of every report that has a confidence: the probability that it is present, whatever was decided."""
    decisions = []
    for labels, answer in zip(gold, answers, strict=True):
        for finding in (answer.record.entities if answer.record is not None else None) or ():
            if finding.confidence is None or finding.key not in scope.keys:
                continue
            there = finding.key in labels.values
            certainty = finding.confidence if finding.present else 1 - finding.confidence
            decisions.append(Decision(finding.confidence, there, certainty, wrong=finding.present != there))
    return decisions


def relation_decisions(gold: Sequence[Labels], answers: Sequence[Answer], scope: Scope) -> list[Decision]:
    """Every relation that was stated with a confidence; those that rules decided have none and do not count."""
    decisions = []
    for labels, answer in zip(gold, answers, strict=True):
        for relation in (answer.record.relations if answer.record is not None else None) or ():
            if relation.confidence is None or relation.subject not in scope.subjects:
                continue
            there = relation.value in labels.values.get(relation.subject, frozenset())
            decisions.append(Decision(relation.confidence, there, relation.confidence, wrong=not there))
    return decisions


def report_decisions(gold: Sequence[Labels], answers: Sequence[Answer], scope: Scope, right: Sequence[bool]) -> list[Decision]:
    """Reports by their least certain decision, wrong where anything of them is: the order in which people would review them."""
    decisions = []
    for labels, answer, fine in zip(gold, answers, right, strict=True):
        parts = [*entity_decisions([labels], [answer], scope), *relation_decisions([labels], [answer], scope)]
        if parts:
            certainty = min(part.certainty for part in parts)
            decisions.append(Decision(certainty, fine, certainty, wrong=not fine))
    return decisions


def reliability(decisions: Sequence[Decision], *, n_bins: int = N_BINS) -> Reliability:
    """Bins of equal width over the probability, and the expected calibration error."""
    members: list[list[Decision]] = [[] for _ in range(n_bins)]
    for decision in decisions:
        members[min(int(decision.probability * n_bins), n_bins - 1)].append(decision)
    bins = tuple(
        Bin(i / n_bins, (i + 1) / n_bins, len(some), mean(d.probability for d in some), mean(float(d.there) for d in some))
        for i, some in enumerate(members)
    )
    n = len(decisions)
    ece = sum(b.n * abs(b.mean_probability - b.share_there) for b in bins if b.n) / n if n else NAN
    return Reliability(n, bins, ece)


def triage(decisions: Sequence[Decision], *, share: float = LEAST_SURE) -> Triage:
    """What reviewing the least sure `share` of decisions finds."""
    n = len(decisions)
    n_wrong = sum(decision.wrong for decision in decisions)
    groups: dict[float, list[bool]] = {}
    for decision in sorted(decisions, key=lambda d: d.certainty):
        groups.setdefault(decision.certainty, []).append(decision.wrong)
    reviewed, found = 0, 0
    points = [(0.0, 0.0)]
    for wrong in groups.values():
        reviewed, found = reviewed + len(wrong), found + sum(wrong)
        points.append((float(reviewed), float(found)))
    if n == 0:
        return Triage(0, 0, share, NAN, NAN, NAN, ())
    n_least = share * n
    n_found = _at(points, n_least)
    return Triage(
        n,
        n_wrong,
        share,
        error_least_sure=n_found / n_least if n_least else NAN,
        error_rest=(n_wrong - n_found) / (n - n_least) if n > n_least else NAN,
        errors_found=n_found / n_wrong if n_wrong else NAN,
        curve=tuple((x / n, y / n_wrong if n_wrong else NAN) for x, y in points),
    )


def _at(points: Sequence[tuple[float, float]], x: float) -> float:
    """Between two points the errors of a tie are shared evenly."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]

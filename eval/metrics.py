"""The published metrics to the letter, and the honest ones beside them. Undefined is nan.

Formulas: shared definitions of Shin et al., Sci Rep 2025;15:31550 (set metrics averaged over reports), not label-macro F1.
A failed row (predicted None) counts as wrong everywhere: not an exact match, nothing recalled, never a correct empty report.

Every figure is a ratio of sums over reports (`COLUMNS`), so the same formulas serve one set of reports and a thousand resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.gold import ScoredPair

NAN = math.nan
Array = NDArray[np.float64]
Row = tuple[frozenset[str], frozenset[str] | None]
Labelled = Sequence[Row]

COLUMNS = (
    "n_reports",
    "n_exact",
    "precision_sum",
    "n_with_prediction",
    "recall_sum",
    "n_with_gold",
    "n_empty_right",
    "n_gold_empty",
    "n_hit",
    "n_predicted",
    "n_gold",
    "f1_sum",
)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of `contributions` over reports; `values` ends in one axis of COLUMNS, whatever stands before it (resamples).

    Figures have the shape before that axis; nan where their denominator is 0.
    """

    values: Array

    def of(self, column: str) -> Array:
        """The sum of one of COLUMNS."""
        return np.asarray(self.values[..., COLUMNS.index(column)], dtype=np.float64)

    @property
    def accuracy(self) -> Array:
        """Share of reports with exactly the gold set."""
        return ratio(self.of("n_exact"), self.of("n_reports"))

    @property
    def precision(self) -> Array:
        """Mean of |hit|/|predicted| over reports with a prediction."""
        return ratio(self.of("precision_sum"), self.of("n_with_prediction"))

    @property
    def recall(self) -> Array:
        """Mean of |hit|/|gold| over reports with gold."""
        return ratio(self.of("recall_sum"), self.of("n_with_gold"))

    @property
    def f1(self) -> Array:
        """Harmonic mean of precision and recall as above; 0 when both are 0."""
        precision, recall = self.precision, self.recall
        both = precision + recall
        return np.where(both == 0, 0.0, ratio(2 * precision * recall, both))

    @property
    def specificity(self) -> Array:
        """Share of gold-empty reports that are predicted empty."""
        return ratio(self.of("n_empty_right"), self.of("n_gold_empty"))

    @property
    def micro_f1(self) -> Array:
        """2·hit / (predicted + gold), summed over reports."""
        return ratio(2 * self.of("n_hit"), self.of("n_predicted") + self.of("n_gold"))

    @property
    def mean_f1(self) -> Array:
        """Mean of each report's own F1 (see report_f1)."""
        return ratio(self.of("f1_sum"), self.of("n_reports"))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Element by element; nan where the denominator is 0."""
    shares = np.full(np.broadcast(numerator, denominator).shape, NAN)
    np.divide(numerator, denominator, out=shares, where=np.asarray(denominator) != 0)
    return shares


def contributions(rows: Sequence[Row | None]) -> Array:
    """What each report adds to every one of COLUMNS: (n_reports, columns). None: a report that does not count here."""
    table = np.zeros((len(rows), len(COLUMNS)))
    for position, row in enumerate(rows):
        if row is not None:
            table[position] = _contribution(*row)
    return table


def _contribution(gold: frozenset[str], predicted: frozenset[str] | None) -> tuple[float, ...]:
    said: frozenset[str] = frozenset() if predicted is None else predicted
    hit = len(gold & said)
    return (
        1,
        predicted == gold,
        hit / len(said) if said else 0,
        bool(said),
        hit / len(gold) if gold else 0,
        bool(gold),
        not gold and predicted == gold,
        not gold,
        hit,
        len(said),
        len(gold),
        report_f1(gold, predicted),
    )


def report_f1(gold: frozenset[str], predicted: frozenset[str] | None) -> float:
    """F1 of one report's set. An empty prediction of an empty report is read right and counts 1; a failed row counts 0."""
    if predicted is None:
        return 0.0
    total = len(gold) + len(predicted)
    return 2 * len(gold & predicted) / total if total else 1.0


@dataclass(frozen=True, slots=True)
class SetScores:
    """Per-report set metrics with their denominators; every score is in [0, 1] or nan."""

    n_reports: int
    accuracy: float
    precision: float
    n_with_prediction: int
    recall: float
    n_with_gold: int
    specificity: float
    n_gold_empty: int

    @property
    def f1(self) -> float:
        """Harmonic mean of the two means; nan when either is undefined, 0 when both are 0."""
        return harmonic_mean(self.precision, self.recall)


@dataclass(frozen=True, slots=True)
class Counts:
    """Hits, predictions and gold items summed over reports."""

    n_hit: int
    n_predicted: int
    n_gold: int

    @property
    def precision(self) -> float:
        """nan when nothing is predicted."""
        return self.n_hit / self.n_predicted if self.n_predicted else NAN

    @property
    def recall(self) -> float:
        """nan when gold is empty."""
        return self.n_hit / self.n_gold if self.n_gold else NAN

    @property
    def f1(self) -> float:
        """2·hit / (predicted + gold); nan when there is neither."""
        total = self.n_predicted + self.n_gold
        return 2 * self.n_hit / total if total else NAN


def harmonic_mean(a: float, b: float) -> float:
    """nan when one is nan, 0 when both are 0."""
    if math.isnan(a) or math.isnan(b):
        return NAN
    return 2 * a * b / (a + b) if a + b else 0.0


def mean(values: Iterable[float]) -> float:
    """Mean of the defined values; nan when none is defined."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else NAN


def set_scores(pairs: Labelled) -> SetScores:
    """Published metrics of predicted against gold sets, one pair a report.

    accuracy: share of exact matches. precision: mean of |hit|/|predicted| over reports with a prediction. recall: mean of
    |hit|/|gold| over reports with gold. specificity: share of gold-empty reports that are predicted empty.
    """
    sums = Sums(contributions(pairs).sum(axis=0))
    return SetScores(
        n_reports=len(pairs),
        accuracy=float(sums.accuracy),
        precision=float(sums.precision),
        n_with_prediction=int(sums.of("n_with_prediction")),
        recall=float(sums.recall),
        n_with_gold=int(sums.of("n_with_gold")),
        specificity=float(sums.specificity),
        n_gold_empty=int(sums.of("n_gold_empty")),
    )


def count(pairs: Labelled) -> Counts:
    """Micro counts over all reports; a failed row predicts nothing."""
    return Counts(
        sum(len(gold & said) for gold, said in pairs if said is not None),
        sum(len(said) for _, said in pairs if said is not None),
        sum(len(gold) for gold, _ in pairs),
    )


def key_sets(pairs: Sequence[ScoredPair]) -> Labelled:
    """Gold and predicted entity keys a report."""
    return [(pair.gold.keys, None if pair.predicted is None else pair.predicted.keys) for pair in pairs]


def only(pairs: Labelled, items: Iterable[str]) -> Labelled:
    """The same sets with nothing but `items` in them."""
    wanted = frozenset(items)
    return [(gold & wanted, None if said is None else said & wanted) for gold, said in pairs]


def per_key_counts(pairs: Labelled, keys: Iterable[str]) -> dict[str, Counts]:
    """Counts of each key on its own; label-macro F1 is the mean of their F1."""
    return {key: count(only(pairs, {key})) for key in keys}


Expand = Callable[[frozenset[str]], frozenset[str]]


def value_rows(
    pairs: Sequence[ScoredPair], subject: str, expand: Expand | None = None, *, second: bool = False
) -> list[Row | None]:
    """The values of `subject` in each report; None where the report does not count.

    Published reading: reports whose gold has the subject count. Second reading: those whose prediction has it as well, so that a
    subject which gold lacks is no longer free; there, a prediction is right only where gold is.
    """
    widen: Expand = expand if expand is not None else frozenset
    rows: list[Row | None] = []
    for pair in pairs:
        gold, said = pair.gold.values.get(subject), None if pair.predicted is None else pair.predicted.values.get(subject)
        if gold is not None:
            rows.append((widen(gold), None if pair.predicted is None else widen(said or frozenset())))
        elif second and said is not None:
            # None for a subject said without a value: its empty set would else equal that of a gold which lacks the subject
            rows.append((frozenset(), widen(said) or None))
        else:
            rows.append(None)
    return rows


def value_sets(pairs: Sequence[ScoredPair], subject: str, expand: Expand | None = None, *, second: bool = False) -> Labelled:
    """`value_rows` without the reports that do not count."""
    return [row for row in value_rows(pairs, subject, expand, second=second) if row is not None]


def relation_sets(pairs: Sequence[ScoredPair], subjects: Iterable[str], expand: Expand | None = None) -> Labelled:
    """All pairs of a report as `subject:value`; a pair of a subject that gold lacks counts against the system."""
    widen: Expand = expand if expand is not None else frozenset
    wanted = tuple(subjects)

    def flat(values: Mapping[str, frozenset[str]]) -> frozenset[str]:
        return frozenset(f"{s}:{value}" for s in wanted for value in widen(values.get(s, frozenset())))

    return [(flat(pair.gold.values), None if pair.predicted is None else flat(pair.predicted.values)) for pair in pairs]


def expand_composites(parts: Mapping[str, tuple[str, ...]]) -> Expand:
    """A function that replaces a composite value by its parts (bll by rll and lll); other values stay."""

    def expand(values: frozenset[str]) -> frozenset[str]:
        return frozenset(part for value in values for part in (parts.get(value) or (value,)))

    return expand

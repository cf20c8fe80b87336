"""The published metrics to the letter, and the honest ones beside them. Undefined is nan.

Formulas: shared definitions of Shin et al., Sci Rep 2025;15:31550 (set metrics averaged over reports), not label-macro F1.
A failed row (predicted None) counts as wrong everywhere: not an exact match, nothing recalled, never a correct empty report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from eval.gold import ScoredPair

NAN = math.nan
Labelled = Sequence[tuple[frozenset[str], frozenset[str] | None]]


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
    with_prediction = [(gold, said) for gold, said in pairs if said]
    with_gold = [(gold, said) for gold, said in pairs if gold]
    empty = [said for gold, said in pairs if not gold]
    return SetScores(
        n_reports=len(pairs),
        accuracy=mean(float(gold == said) for gold, said in pairs),
        precision=mean(len(gold & said) / len(said) for gold, said in with_prediction if said),
        n_with_prediction=len(with_prediction),
        recall=mean(len(gold & (said or frozenset())) / len(gold) for gold, said in with_gold),
        n_with_gold=len(with_gold),
        specificity=mean(float(said == frozenset()) for said in empty),
        n_gold_empty=len(empty),
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


def per_key_counts(pairs: Labelled, keys: Iterable[str]) -> dict[str, Counts]:
    """Counts of each key on its own; label-macro F1 is the mean of their F1."""
    return {key: count([(gold & {key}, None if said is None else said & {key}) for gold, said in pairs]) for key in keys}


Expand = Callable[[frozenset[str]], frozenset[str]]


def value_sets(pairs: Sequence[ScoredPair], subject: str, expand: Expand | None = None) -> Labelled:
    """Published reading: the values of `subject` over the reports whose gold has it."""
    widen: Expand = expand if expand is not None else frozenset
    return [
        (
            widen(pair.gold.values[subject]),
            None if pair.predicted is None else widen(pair.predicted.values.get(subject, frozenset())),
        )
        for pair in pairs
        if subject in pair.gold.values
    ]


def relation_sets(pairs: Sequence[ScoredPair], subjects: Iterable[str], expand: Expand | None = None) -> Labelled:
    """Second reading: all pairs a report as `subject:value`; a subject that gold lacks counts against the system."""
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

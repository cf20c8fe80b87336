"""One system's figures on one set of reports: headline figures, per key, per subject and per pair, each with what it is out of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import Task
from eval.gold import ScoredPair
from eval.metrics import (
    Array,
    Counts,
    Expand,
    Labelled,
    SetScores,
    Sums,
    contributions,
    count,
    expand_composites,
    key_sets,
    only,
    per_key_counts,
    relation_sets,
    set_scores,
    value_rows,
    value_sets,
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What is scored: entity keys, and the subjects that pairs are scored for (none where the gold states no values)."""

    keys: tuple[str, ...]
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeadlineFigure:
    """A figure of the main table. `unit` says what its denominator counts; `pairs` figures need a system that states relations."""

    name: str
    label: str
    unit: str
    about: str
    pairs: bool = False


HEADLINES = (
    HeadlineFigure("keys_accuracy", "Exact keys", "reports", "reports whose set of keys is exactly the gold's"),
    HeadlineFigure("keys_precision", "Precision", "reports with a predicted key", "mean of right/predicted keys a report"),
    HeadlineFigure("keys_recall", "Recall", "reports with a gold key", "mean of right/gold keys a report"),
    HeadlineFigure("keys_f1", "F1 as published", "reports", "harmonic mean of that precision and recall"),
    HeadlineFigure("keys_specificity", "Specificity", "reports without a gold key", "of them, read as empty"),
    HeadlineFigure("keys_micro_f1", "Micro F1", "gold and predicted keys", "over all keys of all reports"),
    HeadlineFigure("keys_macro_f1", "Macro F1", "keys with gold or prediction", "mean of the F1 of each key"),
    HeadlineFigure("pairs_exact", "Exact pairs", "reports", "reports whose set of pairs is exactly the gold's", True),
    HeadlineFigure(
        "pairs_macro_accuracy", "Accuracy as published", "subjects", "exact values, over reports whose gold has it", True
    ),
    HeadlineFigure("pairs_macro_f1", "F1 as published", "subjects", "mean over subjects, over reports whose gold has it", True),
    HeadlineFigure("pairs_macro_f1_expanded", "F1 as published, parts", "subjects", "the same, BLL read as RLL + LLL", True),
    HeadlineFigure("pairs_macro_accuracy_second", "Accuracy, second reading", "subjects", "a subject that gold lacks counts", True),
    HeadlineFigure("pairs_macro_f1_second", "F1, second reading", "subjects", "a subject that gold lacks counts", True),
    HeadlineFigure("pairs_macro_f1_second_expanded", "F1, second reading, parts", "subjects", "the same with parts", True),
    HeadlineFigure("pairs_micro_f1", "Micro F1", "gold and predicted pairs", "over all pairs of all reports", True),
    HeadlineFigure(
        "pairs_micro_f1_expanded", "Micro F1, parts", "gold and predicted pairs", "the same, BLL read as RLL + LLL", True
    ),
)


@dataclass(frozen=True, slots=True)
class Measures:
    """What every report adds to every figure: matrices (n_reports, metrics.COLUMNS).

    `subjects[reading][subject]`, reading being "", "_expanded", "_second" or "_second_expanded".
    """

    keys: Array
    per_key: Mapping[str, Array]
    subjects: Mapping[str, Mapping[str, Array]]
    pairs: Array
    pairs_expanded: Array


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores of a system: entity keys, then pairs. Fractions in [0, 1] or nan.

    Attributes:
        key_counts: Hits, predictions and gold over all keys; `per_key` for each on its own.
        pair_scores: Published reading a subject (see metrics.value_rows), `pair_scores_second` the second one.
        per_pair: Counts of every `subject:value` that gold or the system has.
    """

    n_reports: int
    n_failed: int
    keys: SetScores
    key_counts: Counts
    per_key: dict[str, Counts]
    pair_scores: dict[str, SetScores]
    pair_scores_second: dict[str, SetScores]
    pair_counts: Counts
    pair_counts_expanded: Counts
    per_pair: dict[str, Counts]
    headline: dict[str, float]

    @property
    def key_micro_f1(self) -> float:
        """F1 over all keys of all reports."""
        return self.key_counts.f1

    @property
    def key_macro_f1(self) -> float:
        """Mean F1 of the keys that gold or the system has."""
        return self.headline["keys_macro_f1"]

    @property
    def key_f1(self) -> dict[str, float]:
        """F1 of each key."""
        return {key: counts.f1 for key, counts in self.per_key.items()}

    @property
    def pair_macro_f1(self) -> float:
        """Published: mean over subjects of the F1 over reports whose gold has the subject."""
        return self.headline["pairs_macro_f1"]

    @property
    def pair_macro_accuracy(self) -> float:
        """Published: mean over subjects of the share of exact value sets."""
        return self.headline["pairs_macro_accuracy"]

    @property
    def pair_micro_f1(self) -> float:
        """F1 over all pairs of all reports."""
        return self.pair_counts.f1

    @property
    def pair_micro_f1_expanded(self) -> float:
        """The same with composite values as their parts."""
        return self.pair_counts_expanded.f1

    @property
    def pair_f1(self) -> dict[str, float]:
        """Published F1 of each subject."""
        return {subject: scores.f1 for subject, scores in self.pair_scores.items()}


def paired_subjects(task: Task) -> list[str]:
    """Subjects of relation steps with a choice of values: those that the published pair metrics run over (9 lesions, 3 tumours)."""
    return [
        subject
        for step in task.steps
        if step.kind == "relation"
        for subject in step.subjects
        if len(task.allowed_values(subject, step)) > 1
    ]


def scope_of(task: Task, *, keys: Iterable[str] | None = None, subjects: Iterable[str] | None = None) -> Scope:
    """The scope of a task, in its order; None means all. Subjects outside `keys` go. Raises ValueError for an unknown key."""
    wanted = task.keys if keys is None else tuple(keys)
    wanted_subjects = paired_subjects(task) if subjects is None else list(subjects)
    for name in (*wanted, *wanted_subjects):
        if name not in task.entities:
            raise ValueError(f"key '{name}' is not one of task '{task.name}'")
    return Scope(tuple(k for k in task.keys if k in wanted), tuple(k for k in task.keys if k in wanted_subjects and k in wanted))


def within(scope: Scope, pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """The pairs with nothing but the keys of the scope."""
    keys = scope.keys
    return [ScoredPair(p.gold.within(keys), None if p.predicted is None else p.predicted.within(keys)) for p in pairs]


def expansion(task: Task) -> Expand:
    """Composite values of the task as their parts."""
    return expand_composites({name: value.parts for name, value in task.values.items()})


def measures(task: Task, scope: Scope, pairs: Sequence[ScoredPair]) -> Measures:
    """The matrices that headline figures and their resamples are computed from. `pairs` are within the scope."""
    keys = key_sets(pairs)
    expand = expansion(task)
    readings: dict[str, tuple[Expand | None, bool]] = {
        "": (None, False),
        "_expanded": (expand, False),
        "_second": (None, True),
        "_second_expanded": (expand, True),
    }
    return Measures(
        keys=contributions(keys),
        per_key={key: contributions(only(keys, {key})) for key in scope.keys},
        subjects={
            name: {s: contributions(value_rows(pairs, s, widen, second=second)) for s in scope.subjects}
            for name, (widen, second) in readings.items()
        },
        pairs=contributions(relation_sets(pairs, scope.subjects)),
        pairs_expanded=contributions(relation_sets(pairs, scope.subjects, expand)),
    )


def headline(found: Measures, weights: Array) -> dict[str, Array]:
    """Every figure of HEADLINES for every row of `weights` (n_rows, n_reports): how often a report counts."""
    keys = Sums(weights @ found.keys)
    pairs = Sums(weights @ found.pairs)

    def macro(figure: Callable[[Sums], Array], matrices: Iterable[Array]) -> Array:
        return mean_of_defined([figure(Sums(weights @ matrix)) for matrix in matrices], n_rows=len(weights))

    figures = {
        "keys_accuracy": keys.accuracy,
        "keys_precision": keys.precision,
        "keys_recall": keys.recall,
        "keys_f1": keys.f1,
        "keys_specificity": keys.specificity,
        "keys_micro_f1": keys.micro_f1,
        "keys_macro_f1": macro(lambda sums: sums.micro_f1, found.per_key.values()),
        "pairs_exact": pairs.accuracy if found.subjects[""] else np.full(len(weights), math.nan),
        "pairs_micro_f1": pairs.micro_f1,
        "pairs_micro_f1_expanded": Sums(weights @ found.pairs_expanded).micro_f1,
    }
    for reading, matrices in found.subjects.items():
        figures[f"pairs_macro_f1{reading}"] = macro(lambda sums: sums.f1, matrices.values())
        figures[f"pairs_macro_accuracy{reading}"] = macro(lambda sums: sums.accuracy, matrices.values())
    return {item.name: figures[item.name] for item in HEADLINES}


def denominators(table: ScoreTable) -> dict[str, int]:
    """What each figure of HEADLINES is out of, in its `unit`."""
    keys, key_counts, pairs, parts = table.keys, table.key_counts, table.pair_counts, table.pair_counts_expanded
    published, second = table.pair_scores.values(), table.pair_scores_second.values()
    n_published_f1 = sum(not math.isnan(scores.f1) for scores in published)
    n_second_f1 = sum(not math.isnan(scores.f1) for scores in second)
    return {
        "keys_accuracy": keys.n_reports,
        "keys_precision": keys.n_with_prediction,
        "keys_recall": keys.n_with_gold,
        "keys_f1": keys.n_reports,
        "keys_specificity": keys.n_gold_empty,
        "keys_micro_f1": key_counts.n_gold + key_counts.n_predicted,
        "keys_macro_f1": sum(not math.isnan(counts.f1) for counts in table.per_key.values()),
        "pairs_exact": keys.n_reports,
        "pairs_macro_accuracy": sum(scores.n_reports > 0 for scores in published),
        "pairs_macro_f1": n_published_f1,
        "pairs_macro_f1_expanded": n_published_f1,
        "pairs_macro_accuracy_second": sum(scores.n_reports > 0 for scores in second),
        "pairs_macro_f1_second": n_second_f1,
        "pairs_macro_f1_second_expanded": n_second_f1,
        "pairs_micro_f1": pairs.n_gold + pairs.n_predicted,
        "pairs_micro_f1_expanded": parts.n_gold + parts.n_predicted,
    }


def mean_of_defined(figures: Sequence[Array], *, n_rows: int) -> Array:
    """Row by row; nan where no figure is defined."""
    if not figures:
        return np.full(n_rows, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an all-nan row: its mean is nan, as it should be
        return np.asarray(np.nanmean(np.stack(figures), axis=0), dtype=np.float64)


def score(task: Task, pairs: Sequence[ScoredPair], *, scope: Scope | None = None) -> ScoreTable:
    """All figures of one system, over `scope` or the whole task."""
    scope = scope_of(task) if scope is None else scope
    pairs = within(scope, pairs)
    keys = key_sets(pairs)
    relations = relation_sets(pairs, scope.subjects)
    return ScoreTable(
        n_reports=len(pairs),
        n_failed=sum(pair.predicted is None for pair in pairs),
        keys=set_scores(keys),
        key_counts=count(keys),
        per_key=per_key_counts(keys, scope.keys),
        pair_scores={subject: set_scores(value_sets(pairs, subject)) for subject in scope.subjects},
        pair_scores_second={subject: set_scores(value_sets(pairs, subject, second=True)) for subject in scope.subjects},
        pair_counts=count(relations),
        pair_counts_expanded=count(relation_sets(pairs, scope.subjects, expansion(task))),
        per_pair=_per_pair_counts(relations, scope, task),
        headline={
            name: float(values[0]) for name, values in headline(measures(task, scope, pairs), np.ones((1, len(pairs)))).items()
        },
    )


def _per_pair_counts(relations: Labelled, scope: Scope, task: Task) -> dict[str, Counts]:
    seen = {item for gold, said in relations for item in gold | (said or frozenset())}
    order = [f"{subject}:{value}" for subject in scope.subjects for value in task.values]
    return per_key_counts(relations, [item for item in order if item in seen])

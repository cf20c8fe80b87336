"""One system's scores on one gold file, as rows for a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Task
from eval.gold import ScoredPair
from eval.metrics import SetScores, count, expand_composites, key_sets, mean, per_key_counts, relation_sets, set_scores, value_sets


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores of a system: entity keys, then pairs. Fractions in [0, 1] or nan.

    `pair_*` run over the subjects of the task's relation steps that can have more than one value (9 lesions, 3 tumours).
    """

    n_reports: int
    n_failed: int
    keys: SetScores
    key_micro_f1: float
    key_macro_f1: float
    key_f1: dict[str, float]
    pair_macro_f1: float
    pair_macro_accuracy: float
    pair_micro_f1: float
    pair_micro_f1_expanded: float
    pair_f1: dict[str, float]


def paired_subjects(task: Task) -> list[str]:
    """Subjects of relation steps with a choice of values: those that the published pair metrics run over."""
    return [
        subject
        for step in task.steps
        if step.kind == "relation"
        for subject in step.subjects
        if len(task.allowed_values(subject, step)) > 1
    ]


def score(task: Task, pairs: Sequence[ScoredPair]) -> ScoreTable:
    """All first-line figures of one system."""
    keys = key_sets(pairs)
    per_key = per_key_counts(keys, task.keys)
    subjects = paired_subjects(task)
    per_subject = {subject: set_scores(value_sets(pairs, subject)) for subject in subjects}
    expand = expand_composites({name: value.parts for name, value in task.values.items()})
    return ScoreTable(
        n_reports=len(pairs),
        n_failed=sum(pair.predicted is None for pair in pairs),
        keys=set_scores(keys),
        key_micro_f1=count(keys).f1,
        key_macro_f1=mean(counts.f1 for counts in per_key.values()),
        key_f1={key: counts.f1 for key, counts in per_key.items()},
        pair_macro_f1=mean(scores.f1 for scores in per_subject.values()),
        pair_macro_accuracy=mean(scores.accuracy for scores in per_subject.values()),
        pair_micro_f1=count(relation_sets(pairs, subjects)).f1,
        pair_micro_f1_expanded=count(relation_sets(pairs, subjects, expand)).f1,
        pair_f1={subject: scores.f1 for subject, scores in per_subject.items()},
    )

"""How far two annotators agree on the same reports: Cohen's kappa by key and by subject's values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Task
from eval.gold import GoldError, Labels
from eval.score import paired_subjects
from eval.significance import Kappa, cohen_kappa


@dataclass(frozen=True, slots=True)
class Agreement:
    """One kind of yes/no decision. `n_first` and `n_second` are how often each annotator says yes."""

    name: str
    n_first: int
    n_second: int
    kappa: Kappa


def annotator_agreement(task: Task, first: Sequence[Labels], second: Sequence[Labels]) -> list[Agreement]:
    """Rows: every key, all keys together, the values of every subject, all values together.

    A key is decided once a report. A value is decided in the reports in which both annotators have its subject, so that a
    disagreement about the key does not count twice.

    Raises:
        GoldError: the two have not the same reports.
    """
    others = {labels.report_id: labels for labels in second}
    ids = {labels.report_id for labels in first}
    if ids != set(others):
        only = sorted(ids ^ set(others))
        raise GoldError(f"the two annotations differ in {len(only)} reports; the first is '{only[0]}'; both need the same reports")
    pairs = [(labels, others[labels.report_id]) for labels in first]
    by_key = {key: [(key in a.values, key in b.values) for a, b in pairs] for key in task.keys}
    by_subject = {
        subject: [
            (value in a.values[subject], value in b.values[subject])
            for a, b in pairs
            if subject in a.values and subject in b.values
            for value in _values(task, subject)
        ]
        for subject in paired_subjects(task)
    }
    rows = [_agreement(key, decisions) for key, decisions in by_key.items()]
    rows.append(_agreement("all keys", [decision for decisions in by_key.values() for decision in decisions]))
    if by_subject:
        rows += [_agreement(f"{subject}: values", decisions) for subject, decisions in by_subject.items()]
        rows.append(_agreement("all values", [decision for decisions in by_subject.values() for decision in decisions]))
    return rows


def _values(task: Task, subject: str) -> list[str]:
    steps = [step for step in task.steps if step.kind == "relation" and subject in step.subjects]
    return list(dict.fromkeys(value for step in steps for value in task.allowed_values(subject, step)))


def _agreement(name: str, decisions: Sequence[tuple[bool, bool]]) -> Agreement:
    first, second = [a for a, _ in decisions], [b for _, b in decisions]
    return Agreement(name, sum(first), sum(second), cohen_kappa(first, second))

"""What went wrong, report by report: omission, addition, confusion, inexact, invalid; and which diagnosis was taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from configs.schema import Task
from eval.gold import ScoredPair
from eval.metrics import Labelled
from eval.score import Scope

Kind = Literal["omission", "addition", "confusion", "inexact", "invalid"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_MEANING: Mapping[Kind, str] = {
    "omission": "the report states it, the system does not",
    "addition": "the system states it, the report does not",
    "confusion": "one stated in place of another",
    "inexact": "a neighbouring value: it shares a part (BLL for RLL) or the side (right lung for RUL)",
    "invalid": "no answer: the record is failed or rejected",
}
NONE = "none"


@dataclass(frozen=True, slots=True)
class ReportError:
    """One thing wrong with one report.

    `subject` is None for the set of keys, else the subject whose values are wrong (a subject that gold and system both have).
    """

    report_id: str
    kind: Kind
    subject: str | None
    missed: tuple[str, ...]
    extra: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Confusion:
    """counts[gold][predicted] over `names` and `none`.

    A gold diagnosis that is predicted counts on the diagonal. One that is not counts under every predicted diagnosis of the report
    that gold lacks, or under `none`; a predicted one in a report without a missed diagnosis counts in the row `none`.
    """

    names: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    n_reports: int


def report_errors(task: Task, scope: Scope, pairs: Sequence[ScoredPair]) -> list[ReportError]:
    """All errors, in gold order; keys first, then the values of subjects that both have."""
    errors = []
    for pair in pairs:
        report_id, gold, said = pair.gold.report_id, pair.gold, pair.predicted
        if said is None:
            errors.append(ReportError(report_id, "invalid", None, _ordered(gold.keys, task.keys), ()))
            continue
        missed, extra = _ordered(gold.keys - said.keys, task.keys), _ordered(said.keys - gold.keys, task.keys)
        if missed or extra:
            errors.append(ReportError(report_id, _kind(missed, extra), None, missed, extra))
        for subject in scope.subjects:
            if subject in gold.values and subject in said.values:
                order = tuple(task.values)
                missed = _ordered(gold.values[subject] - said.values[subject], order)
                extra = _ordered(said.values[subject] - gold.values[subject], order)
                if missed or extra:
                    kind = _kind(missed, extra)
                    if kind == "confusion" and _all_near(task, missed, extra) and _all_near(task, extra, missed):
                        kind = "inexact"
                    errors.append(ReportError(report_id, kind, subject, missed, extra))
    return errors


def confusion(pairs: Labelled, names: Sequence[str]) -> Confusion:
    """Which of `names` was taken for which; failed rows predict none."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*names, NONE)}
    for whole_gold, whole_said in pairs:
        gold, said = whole_gold & frozenset(names), (whole_said or frozenset()) & frozenset(names)
        missed, extra = gold - said, said - gold
        for name in gold & said:
            counts[name][name] += 1
        for name in missed:
            for other in extra or {NONE}:
                counts[name][other] += 1
        if not missed:
            for name in extra:
                counts[NONE][name] += 1
        if not gold and not said:
            counts[NONE][NONE] += 1
    columns = (*names, NONE)
    return Confusion(tuple(names), {row: {column: counts[row][column] for column in columns} for row in columns}, len(pairs))


def _kind(missed: Sequence[str], extra: Sequence[str]) -> Kind:
    return "confusion" if missed and extra else "omission" if missed else "addition"


def _ordered(items: frozenset[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(item for item in order if item in items)


def _all_near(task: Task, values: Sequence[str], others: Sequence[str]) -> bool:
    return all(any(_near(task, value, other) for other in others) for value in values)


def _near(task: Task, first: str, second: str) -> bool:
    parts = [frozenset(task.values[name].parts or (name,)) for name in (first, second)]
    sides = [{task.values[part].side for part in some} - {None} for some in parts]
    return bool(parts[0] & parts[1] or sides[0] & sides[1])

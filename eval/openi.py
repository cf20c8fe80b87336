"""Open-I's chest X-ray reports with manual codes (`Pulmonary Atelectasis/base/left`) as annotated reports with places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import Task, load_task
from eval.gold import GoldError, GoldReport, Labels
from eval.public_sets import ALL, Benchmark, OpenIMapping, benchmark_scope, csv_rows, once, share_text
from eval.score import Scope

LOCATED = "located"
CLEAN = "located, clean"


@dataclass(frozen=True, slots=True)
class CodeReading:
    """What one code says. `key` None: no key of ours. `clean` False: the code can be read in more than one way."""

    key: str | None
    values: frozenset[str]
    clean: bool


def read_code(code: str, mapping: OpenIMapping, task: Task) -> CodeReading:
    """The key and values of one code; a place that the key cannot have (an effusion's lung) gives no value."""
    heading, *qualifiers = [part.strip() for part in code.split("/")]
    for entry in mapping.codes:
        fits = entry.heading == heading and (not entry.with_ or set(entry.with_) & set(qualifiers))
        if fits and not set(entry.without) & set(qualifiers):
            values, clean = _places(qualifiers, mapping)
            return CodeReading(entry.key, values & _possible(task, entry.key), clean)
    return CodeReading(None, frozenset(), heading not in mapping.unclear)


def _possible(task: Task, key: str) -> frozenset[str]:
    steps = [step for step in task.steps if step.kind == "relation" and key in step.subjects]
    return frozenset(value for step in steps for value in task.allowed_values(key, step))


def _places(qualifiers: Sequence[str], mapping: OpenIMapping) -> tuple[frozenset[str], bool]:
    """The values of a code's qualifiers, and whether every place among them was understood."""
    sides = [qualifier for qualifier in qualifiers if qualifier in mapping.sides]
    parts = [qualifier for qualifier in qualifiers if qualifier in mapping.places]
    others = [qualifier for qualifier in qualifiers if qualifier in mapping.other_places]
    if not parts:
        return frozenset(value for side in sides for value in mapping.sides[side]), not others
    found = [mapping.places[part].get(side) for part in parts for side in sides or ["any"]]
    return frozenset(value for value in found if value is not None), None not in found and not others


def load_openi(path: Path, mapping: OpenIMapping) -> Benchmark:
    """Reports with labels and a text; subsets are those with a located lesion, and of them those that can be read in one way only.

    Raises:
        GoldError: a missing column or id, an id that stands twice, a report without any code.
    """
    task = load_task(mapping.task)
    columns = mapping.columns
    keys = list(dict.fromkeys(entry.key for entry in mapping.codes))
    scope = benchmark_scope(task, keys, has_places=True)
    gold: list[GoldReport] = []
    clean: list[bool] = []
    seen: dict[str, str] = {}
    n_unlabelled = n_empty = 0
    for where, row in csv_rows(path, [columns.report_id, columns.codes, *columns.texts]):
        once(seen, row[columns.report_id], where)
        codes = [code.strip() for code in row[columns.codes].split(";") if code.strip()]
        if not codes:
            raise GoldError(f"{where}: '{columns.codes}' is empty; codes or '{mapping.normal[0]}' are expected")
        text = "\n".join(row[column].strip() for column in columns.texts if row[column].strip())
        if set(codes) & set(mapping.unlabelled):
            n_unlabelled += 1
        elif not text:
            n_empty += 1
        else:
            labels, is_clean = _labels(row[columns.report_id], codes, mapping, task, scope)
            gold.append(GoldReport(labels, text))
            clean.append(is_clean)
    if not gold:
        raise GoldError(f"{path}: holds no labelled report with a text")
    located = [place for place, report in enumerate(gold) if any(report.labels.values.get(s) for s in scope.subjects)]
    notes = [
        f"Left out: {share_text(n_unlabelled, len(seen))} reports without labels, {share_text(n_empty, len(seen))} without text.",
        f"'{LOCATED}': a code of {', '.join(scope.subjects)} states a place. '{CLEAN}': besides, every such code states a place "
        "that a value stands for, and no code files a finding under a heading that our keys may share (opacity, granuloma, …).",
        *mapping.limits,
    ]
    return Benchmark(
        name="openi",
        title=mapping.title,
        task=task,
        scope=scope,
        gold=tuple(gold),
        subsets={ALL: tuple(range(len(gold))), LOCATED: tuple(located), CLEAN: tuple(p for p in located if clean[p])},
        notes=tuple(notes),
    )


def _labels(report_id: str, codes: Sequence[str], mapping: OpenIMapping, task: Task, scope: Scope) -> tuple[Labels, bool]:
    values: dict[str, set[str]] = {}
    clean = True
    for code in codes:
        reading = read_code(code, mapping, task)
        clean = clean and reading.clean
        if reading.key is not None:
            values.setdefault(reading.key, set()).update(reading.values)
            clean = clean and (bool(reading.values) or reading.key not in scope.subjects)
    return Labels(report_id, {key: frozenset(some) for key, some in values.items()}), clean

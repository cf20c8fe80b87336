"""Annotated reports (the gold) and what systems said of them, side by side: reading, checking and pairing by report id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.contracts import TaggedReport
from configs.schema import Task
from configs.yaml_lines import did_you_mean
from pipeline.annotations import AnnotationError, json_lines, read_annotations
from pipeline.archive import PARTS, part_names, part_problem
from pipeline.records import RecordError, read_json_lines, read_records


class GoldError(Exception):
    """A gold or record file that cannot be scored: `file:line: what was found; what is expected`."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of one report: subject key to its value keys; a subject that is present without a value maps to an empty set."""

    report_id: str
    values: Mapping[str, frozenset[str]]

    @property
    def keys(self) -> frozenset[str]:
        """Entity keys labelled as present."""
        return frozenset(self.values)

    def within(self, keys: Iterable[str]) -> Labels:
        """Only these entity keys: for gold that was labelled for some keys of the task."""
        wanted = frozenset(keys)
        return Labels(self.report_id, {key: values for key, values in self.values.items() if key in wanted})


@dataclass(frozen=True, slots=True)
class GoldReport:
    """An annotated report. text None: it can be scored but not tagged. patient_id None: it counts as a patient of its own."""

    labels: Labels
    text: str | None = None
    patient_id: str | None = None
    style: str | None = None

    @property
    def report_id(self) -> str:
        """The id that records are joined by."""
        return self.labels.report_id


@dataclass(frozen=True, slots=True)
class Answer:
    """What a system said of a report.

    `labels` is None where its row is failed or rejected. `record` is None where the system's file holds labels, not records; then
    there are neither confidences nor spans.
    """

    labels: Labels | None
    record: TaggedReport | None = None


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One report's gold and what a system said; predicted is None where the system's row is failed or rejected."""

    gold: Labels
    predicted: Labels | None


def read_gold_reports(path: Path, task: Task) -> list[GoldReport]:
    """The reports of an annotation file, in file order; `task`, `text`, `patient_id` and `style` may be missing in a row.

    Raises:
        GoldError: no JSON, missing or duplicate id, another task, unknown key or value, or no report at all.
    """
    try:
        rows = read_annotations(path, task, strict=False)
    except AnnotationError as error:
        raise GoldError(str(error)) from None
    if not rows:
        raise GoldError(f"{path}: holds no report; at least one annotated report is expected")
    return [
        GoldReport(_labels(row.report.report_id, row.labels), row.report.text or None, row.report.patient_id, row.style)
        for row in rows
    ]


def read_gold(path: Path, task: Task) -> list[Labels]:
    """The labels alone of `read_gold_reports`."""
    return [report.labels for report in read_gold_reports(path, task)]


def read_answers(path: Path, task: Task) -> dict[str, Answer]:
    """What a system said, by report id: a run directory, records as .jsonl or .parquet, or a .jsonl file in the format of the gold.

    Raises:
        GoldError: a damaged part, no record, another task, unknown key or value, duplicate id.
    """
    try:
        if path.is_file() and path.suffix.lower() == ".jsonl" and _holds_labels(path):
            return {r.report_id: Answer(r.labels) for r in read_gold_reports(path, task)}
        answers: dict[str, Answer] = {}
        for where, record in _records(path):
            if record.task != task.name:
                raise GoldError(f"{where}: record is of task '{record.task}'; '{task.name}' is expected")
            if record.report_id in answers:
                raise GoldError(f"{where}: report_id '{record.report_id}' stands twice")
            answers[record.report_id] = Answer(_record_labels(record, task, where), record)
    except (AnnotationError, RecordError) as error:
        raise GoldError(str(error)) from None
    return answers


def read_predictions(path: Path, task: Task) -> dict[str, Labels | None]:
    """The labels alone of `read_answers`. None: the row is failed or rejected."""
    return {report_id: answer.labels for report_id, answer in read_answers(path, task).items()}


def answers_of(gold: Sequence[Labels], answers: Mapping[str, Answer], *, where: str = "records") -> list[Answer]:
    """The answers in gold order. Raises GoldError when a gold report has none; answers to other reports are passed over."""
    missing = [labels.report_id for labels in gold if labels.report_id not in answers]
    if missing:
        raise GoldError(f"{where}: {len(missing)} of {len(gold)} gold reports have no record; the first is '{missing[0]}'")
    return [answers[labels.report_id] for labels in gold]


def pair_up(gold: list[Labels], predicted: Mapping[str, Labels | None]) -> list[ScoredPair]:
    """Gold reports with their predictions, in gold order. Raises GoldError when a gold report has no record."""
    missing = [labels.report_id for labels in gold if labels.report_id not in predicted]
    if missing:
        raise GoldError(f"{len(missing)} of {len(gold)} gold reports have no record; the first is '{missing[0]}'")
    return [ScoredPair(labels, predicted[labels.report_id]) for labels in gold]


def texts_sha256(gold: Iterable[GoldReport]) -> str:
    """Over ids and texts in their order: equal ones are tagged alike."""
    return _sha256([report.report_id, report.text] for report in gold)


def gold_sha256(gold: Iterable[GoldReport]) -> str:
    """Over ids, texts, patients and labels in their order, whatever the order of fields and values in the file."""
    return _sha256(
        [r.report_id, r.text, r.patient_id, {key: sorted(values) for key, values in r.labels.values.items()}] for r in gold
    )


def _sha256(rows: Iterable[object]) -> str:
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return whole.hexdigest()


def _labels(report_id: str, values: Mapping[str, Iterable[str]]) -> Labels:
    return Labels(report_id, {key: frozenset(some) for key, some in values.items()})


def _holds_labels(path: Path) -> bool:
    first = next(json_lines(path), None)
    return first is not None and "labels" in first[1] and "status" not in first[1]


def _records(path: Path) -> Iterator[tuple[str, TaggedReport]]:
    """Every record with its file:line, or its row for Parquet."""
    if path.is_dir():
        for file in _whole_parts(path):
            for number, record in enumerate(read_json_lines(file), 1):
                yield f"{file}:{number}", record
    else:
        for number, record in enumerate(read_records(path), 1):
            yield f"{path}:{number}", record


def _whole_parts(folder: Path) -> list[Path]:
    names = part_names(folder)
    if not names:
        raise GoldError(f"{folder}: holds no part file; a run directory or a JSON Lines file of records is expected")
    for name in names:
        problem = part_problem(folder, name)
        if problem is not None:
            raise GoldError(f"{folder}: {problem}; tag again with --resume")
    return [folder / PARTS / f"{name}.jsonl" for name in names]


def _record_labels(record: TaggedReport, task: Task, where: str) -> Labels | None:
    if record.entities is None or record.relations is None:
        return None
    values: dict[str, set[str]] = {finding.key: set() for finding in record.entities if finding.present}
    for relation in record.relations:
        values.setdefault(relation.subject, set()).add(relation.value)
        if relation.value not in task.values:
            raise GoldError(f"{where}: value '{relation.value}' is not known{did_you_mean(relation.value, task.values)}")
    for key in values:
        if key not in task.entities:
            raise GoldError(f"{where}: key '{key}' is not known{did_you_mean(key, task.keys)}")
    return _labels(record.report_id, values)

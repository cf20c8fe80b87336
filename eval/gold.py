"""Annotated reports (the gold) and records side by side: reading, checking and pairing them by report id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.schema import Task
from configs.yaml_lines import did_you_mean
from pipeline.archive import PARTS, part_names, part_problem


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


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One report's gold and what a system said; predicted is None where the system's row is failed or rejected."""

    gold: Labels
    predicted: Labels | None


def read_gold(path: Path, task: Task) -> list[Labels]:
    """The labels of an annotation file, in file order.

    Raises:
        GoldError: no JSON, missing or duplicate id, another task, unknown key or value, or no report at all.
    """
    seen: dict[str, int] = {}
    gold = []
    for line, row in _rows(path):
        report_id = _report_id(path, line, row, seen)
        if row.get("task", task.name) != task.name:
            raise GoldError(f"{path}:{line}: task is '{row['task']}'; '{task.name}' is expected")
        labels = row.get("labels")
        if not isinstance(labels, dict):
            raise GoldError(f"{path}:{line}: has no 'labels' mapping")
        gold.append(Labels(report_id, _checked(path, line, labels, task)))
    if not gold:
        raise GoldError(f"{path}: holds no report; at least one annotated report is expected")
    return gold


def read_predictions(path: Path, task: Task) -> dict[str, Labels | None]:
    """Records by report id, from one JSON Lines file or a run directory's parts. None: the row is failed or rejected."""
    files = _whole_parts(path) if path.is_dir() else [path]
    seen: dict[str, int] = {}
    predicted: dict[str, Labels | None] = {}
    for file in files:
        for line, row in _rows(file):
            report_id = _report_id(file, line, row, seen)
            if row.get("task") != task.name:
                raise GoldError(f"{file}:{line}: record is of task '{row.get('task')}'; '{task.name}' is expected")
            predicted[report_id] = _record_labels(file, line, row, task)
    return predicted


def _whole_parts(folder: Path) -> list[Path]:
    names = part_names(folder)
    if not names:
        raise GoldError(f"{folder}: holds no part file; a run directory or a JSON Lines file of records is expected")
    for name in names:
        problem = part_problem(folder, name)
        if problem is not None:
            raise GoldError(f"{folder}: {problem}; tag again with --resume")
    return [folder / PARTS / f"{name}.jsonl" for name in names]


def pair_up(gold: list[Labels], predicted: Mapping[str, Labels | None]) -> list[ScoredPair]:
    """Gold reports with their predictions, in gold order. Raises GoldError when a gold report has no record."""
    missing = [labels.report_id for labels in gold if labels.report_id not in predicted]
    if missing:
        raise GoldError(f"{len(missing)} of {len(gold)} gold reports have no record; the first is '{missing[0]}'")
    return [ScoredPair(labels, predicted[labels.report_id]) for labels in gold]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        handle = path.open("rb")
    except OSError as error:
        raise GoldError(f"{path}: cannot be read: {error.strerror}") from None
    with handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise GoldError(f"{path}:{number}: is not UTF-8 at byte {error.start} of the line") from None
            except json.JSONDecodeError as error:
                raise GoldError(f"{path}:{number}: is not JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(row, dict):
                raise GoldError(f"{path}:{number}: holds {type(row).__name__}; a JSON object is expected")
            yield number, row


def _report_id(path: Path, line: int, row: Mapping[str, Any], seen: dict[str, int]) -> str:
    report_id = row.get("report_id")
    if not isinstance(report_id, str) or not report_id:
        raise GoldError(f"{path}:{line}: has no 'report_id'")
    if report_id in seen:
        raise GoldError(f"{path}:{line}: report_id '{report_id}' stands twice; first in line {seen[report_id]}")
    seen[report_id] = line
    return report_id


def _checked(path: Path, line: int, labels: Mapping[str, Any], task: Task) -> dict[str, frozenset[str]]:
    for key, values in labels.items():
        if key not in task.entities:
            raise GoldError(f"{path}:{line}: key '{key}' is not known{did_you_mean(key, task.keys)}")
        if not isinstance(values, list):
            raise GoldError(f"{path}:{line}: labels of '{key}' are {type(values).__name__}; a list is expected")
        for value in values:
            if value not in task.values:
                raise GoldError(f"{path}:{line}: value '{value}' of '{key}' is not known{did_you_mean(str(value), task.values)}")
    return {key: frozenset(values) for key, values in labels.items()}


def _record_labels(path: Path, line: int, row: Mapping[str, Any], task: Task) -> Labels | None:
    status = row.get("status")
    if status in ("failed", "rejected"):
        return None
    if status not in ("ok", "no_findings"):
        raise GoldError(f"{path}:{line}: status is {status!r}; ok, no_findings, failed or rejected is expected")
    try:
        labels: dict[str, list[str]] = {entity["key"]: [] for entity in row["entities"] if entity["present"]}
        for relation in row["relations"]:
            labels.setdefault(relation["subject"], []).append(relation["value"])
    except (KeyError, TypeError) as error:
        raise GoldError(f"{path}:{line}: is no record: {error!r} where entities and relations are expected") from None
    return Labels(str(row["report_id"]), _checked(path, line, labels, task))

"""Annotated reports: JSON Lines with one object a report, which training learns from and evaluation measures against.

Every refusal is `file:line: what was found; what is expected or nearest`. Report text never enters a message.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.contracts import Report
from configs.schema import Task
from configs.yaml_lines import did_you_mean

NEAR_NAME = 0.75  # difflib ratio from which an unknown field is taken for a slip of a known one


class AnnotationError(Exception):
    """An annotation file that cannot be used: `file:line: what was found; what is expected`."""


@dataclass(frozen=True, slots=True)
class AnnotatedReport:
    """A report and what it states: subject key to value keys; a key that is not there is not present.

    Attributes:
        report: Its text is empty where the file gives none, which `read_annotations` allows on demand only.
        style: House style of the author; None where the file says none.
        line: 1-based line in its file.
    """

    report: Report
    labels: Mapping[str, tuple[str, ...]]
    style: str | None
    line: int


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    report_id: str = Field(min_length=1)
    task: str
    text: str = Field(min_length=1)
    labels: dict[str, list[str]]
    style: str | None = None
    patient_id: str | None = None
    date: str | None = None
    notes: str | None = None
    source: str | None = None  # "distilled" where a model labelled the report, "weak" where rules did; people's labels have none
    confidence: float | None = Field(default=None, ge=0, le=1)


class _GoldLine(_Line):
    task: str | None = None  # type: ignore[assignment]  # a gold file may leave it out
    text: str | None = Field(default=None, min_length=1)  # type: ignore[assignment]  # needed only where it is tagged
    source: Any = None  # what other tools call so is passed over
    confidence: Any = None


def read_annotations(path: Path, task: Task, *, strict: bool = True) -> list[AnnotatedReport]:
    """The reports of one annotation file, in order.

    Args:
        strict: Every row has task and text, and no field that is not known. Otherwise both may be missing, and a further field is
            passed over unless its name is a slip of a known one.

    Raises:
        AnnotationError: unreadable file, a line that is no annotation, a label the task does not know, a report_id that stands
            twice, weak labels where `strict` is False.
    """
    allowed = _allowed_values(task)
    model = _Line if strict else _GoldLine
    reports: list[AnnotatedReport] = []
    first_line: dict[str, int] = {}
    for number, data in json_lines(path):
        where = f"{path}:{number}"
        line = _checked(model, data if strict else _without_other_fields(data), where)
        if line.task not in (task.name, *(() if strict else (None,))):
            raise AnnotationError(f"{where}: task '{line.task}' is not '{task.name}'")
        if line.source == "weak" and not strict:
            raise AnnotationError(f"{where}: labels that rules made are no gold standard (source is 'weak')")
        if line.report_id in first_line:
            raise AnnotationError(f"{where}: report_id '{line.report_id}' stands twice; first in line {first_line[line.report_id]}")
        first_line[line.report_id] = number
        _check_labels(line.labels, task, allowed, where)
        labels = {key: tuple(values) for key, values in line.labels.items()}
        report = Report(line.report_id, line.text or "", patient_id=line.patient_id, study_date=line.date)
        reports.append(AnnotatedReport(report, labels, line.style, number))
    return reports


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their 1-based line; empty lines are passed over. Raises AnnotationError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror}") from None
    # Not splitlines(): U+2028 inside a text is no end of line in JSON Lines.
    for number, encoded in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            line = encoded.decode("utf-8")
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{path}:{number}: is not UTF-8 at byte {error.start} of the line") from None
        if not line.strip():
            continue
        try:
            data = json.loads(line, object_pairs_hook=_no_duplicates)
        except _DuplicateName as error:
            raise AnnotationError(f"{path}:{number}: '{error}' stands twice in one object") from None
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{path}:{number}: is not JSON: {error.msg} at character {error.pos}") from None
        if not isinstance(data, dict):
            raise AnnotationError(f"{path}:{number}: holds {type(data).__name__}; an object is expected")
        yield number, data


class _DuplicateName(Exception):  # noqa: N818 - carried out of the JSON parser, never seen by a caller
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateName(name)
        found[name] = value
    return found


def _without_other_fields(data: dict[str, Any]) -> dict[str, Any]:
    known = list(_GoldLine.model_fields)
    return {
        name: value
        for name, value in data.items()
        if name in known or difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=NEAR_NAME)
    }


def _checked(model: type[_Line], data: dict[str, Any], where: str) -> _Line:
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        first = next(
            (e for e in error.errors() if e["type"] == "extra_forbidden"), error.errors()[0]
        )  # a slip is also a missing field
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise AnnotationError(f"{where}: field '{name}' is not known{did_you_mean(name, model.model_fields)}") from None
        if first["type"] == "missing":
            raise AnnotationError(f"{where}: field '{name}' is missing") from None
        raise AnnotationError(f"{where}: field '{name}': {first['msg']}") from None


def _allowed_values(task: Task) -> dict[str, set[str]]:
    steps = [step for step in task.steps if step.kind == "relation"]
    return {
        key: {value for step in steps if key in step.subjects for value in task.allowed_values(key, step)}
        | set(task.entities[key].implied)
        for key in task.keys
    }


def _check_labels(labels: Mapping[str, list[str]], task: Task, allowed: Mapping[str, set[str]], where: str) -> None:
    for key, values in labels.items():
        _known(key, task.keys, f"{where}: label '{key}'")
        for value in values:
            _known(value, task.values, f"{where}: value '{value}' of '{key}'")
            if value not in allowed[key]:
                raise AnnotationError(f"{where}: '{key}' cannot have value '{value}'{did_you_mean(value, allowed[key])}")
        if len(set(values)) < len(values):
            raise AnnotationError(f"{where}: '{key}' has a value twice")


def _known(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        raise AnnotationError(f"{what} is not known{did_you_mean(name, names)}")

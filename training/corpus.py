"""Annotated reports: JSON Lines with one object a report, in train.jsonl, dev.jsonl and test.jsonl of a corpus folder.

Every refusal is `file:line: what was found; what is expected or nearest`. Report text never enters a message.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.contracts import Report
from configs.schema import Task
from configs.yaml_lines import did_you_mean

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class CorpusError(Exception):
    """An annotation file that cannot be used: `file:line: what was found; what is expected`."""


@dataclass(frozen=True, slots=True)
class AnnotatedReport:
    """A report and what it states: subject key to value keys; a key that is not there is not present.

    Attributes:
        style: House style of the author; None where the file says none.
        line: 1-based line in its file.
    """

    report: Report
    labels: Mapping[str, tuple[str, ...]]
    style: str | None
    line: int


@dataclass(frozen=True, slots=True)
class Corpus:
    """The splits of one task. `warnings` are whole sentences for the user (a key that a split knows in one class only)."""

    task: Task
    splits: Mapping[Split, tuple[AnnotatedReport, ...]]
    content_hash: str
    warnings: tuple[str, ...] = field(default=())


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


def read_annotations(path: Path, task: Task) -> list[AnnotatedReport]:
    """The reports of one annotation file, in order.

    Raises:
        CorpusError: unreadable file, a line that is no annotation, a label the task does not know, a report_id that stands twice.
    """
    relation_steps = [step for step in task.steps if step.kind == "relation"]
    allowed = {
        key: {value for step in relation_steps if key in step.subjects for value in task.allowed_values(key, step)}
        for key in task.keys
    }
    reports: list[AnnotatedReport] = []
    first_line: dict[str, int] = {}
    for number, data in json_lines(path):
        where = f"{path}:{number}"
        line = _checked(_Line, data, where)
        if line.task != task.name:
            raise CorpusError(f"{where}: task '{line.task}' is not '{task.name}'")
        if line.report_id in first_line:
            raise CorpusError(f"{where}: report_id '{line.report_id}' stands twice; first in line {first_line[line.report_id]}")
        first_line[line.report_id] = number
        for key, values in line.labels.items():
            _known(key, task.keys, f"{where}: label '{key}'")
            for value in values:
                _known(value, task.values, f"{where}: value '{value}' of '{key}'")
                if value not in allowed[key] and value not in task.entities[key].implied:
                    raise CorpusError(f"{where}: '{key}' cannot have value '{value}'{did_you_mean(value, allowed[key])}")
            if len(set(values)) < len(values):
                raise CorpusError(f"{where}: '{key}' has a value twice")
        labels = {key: tuple(values) for key, values in line.labels.items()}
        report = Report(line.report_id, line.text, patient_id=line.patient_id, study_date=line.date)
        reports.append(AnnotatedReport(report, labels, line.style, number))
    return reports


def read_corpus(folder: Path, task: Task, *, needed: Sequence[Split] = ("train", "dev")) -> Corpus:
    """The splits of a corpus folder that exist.

    A key that training never sees present, or never sees absent, cannot be learned: an error. In dev or test it only cannot be
    measured: a warning.

    Raises:
        CorpusError: a needed split is missing or empty, an id or a patient stands in two splits, a key has one class in train.
    """
    if not folder.is_dir():
        raise CorpusError(f"{folder}: is no folder; a folder with train.jsonl and dev.jsonl is expected")
    splits: dict[Split, tuple[AnnotatedReport, ...]] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            if split in needed:
                raise CorpusError(f"{path}: file does not exist")
            continue
        splits[split] = tuple(read_annotations(path, task))
        if not splits[split]:
            raise CorpusError(f"{path}: holds no report")
        digest.update(split.encode() + hashlib.sha256(path.read_bytes()).digest())
    _refuse_leaks(folder, splits)
    warnings = []
    for split, reports in splits.items():
        for message in _one_class_keys(folder / f"{split}.jsonl", reports, task):
            if split == "train":
                raise CorpusError(message + "; training needs both")
            warnings.append(message)
    return Corpus(task, splits, digest.hexdigest(), tuple(warnings))


def read_texts(path: Path) -> list[Report]:
    """Unlabelled reports of a JSON Lines file with report_id and text (other fields are ignored). Raises CorpusError."""
    reports = []
    for number, data in json_lines(path):
        if not isinstance(data.get("report_id"), str) or not isinstance(data.get("text"), str) or not data["text"]:
            raise CorpusError(f"{path}:{number}: report_id and text, both non-empty strings, are expected")
        reports.append(Report(data["report_id"], data["text"]))
    if not reports:
        raise CorpusError(f"{path}: holds no report")
    return reports


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their 1-based line; empty lines are passed over. Raises CorpusError."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: byte {error.start} is not UTF-8") from None
    # Not splitlines(): U+2028 inside a text is no end of line in JSON Lines.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line, object_pairs_hook=_no_duplicates)
        except _DuplicateName as error:
            raise CorpusError(f"{path}:{number}: '{error}' stands twice in one object") from None
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}:{number}: is not JSON: {error.msg} at character {error.pos}") from None
        if not isinstance(data, dict):
            raise CorpusError(f"{path}:{number}: holds {type(data).__name__}; an object is expected")
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


def _checked(model: type[_Line], data: dict[str, Any], where: str) -> _Line:
    try:
        return model.model_validate(data, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise CorpusError(f"{where}: field '{name}' is not known{did_you_mean(name, model.model_fields)}") from None
        if first["type"] == "missing":
            raise CorpusError(f"{where}: field '{name}' is missing") from None
        raise CorpusError(f"{where}: field '{name}': {first['msg']}") from None


def _known(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        raise CorpusError(f"{what} is not known{did_you_mean(name, names)}")


def _refuse_leaks(folder: Path, splits: Mapping[Split, tuple[AnnotatedReport, ...]]) -> None:
    seen: dict[tuple[str, str], Split] = {}
    for split, reports in splits.items():
        for item in reports:
            names = [("report_id", item.report.report_id)]
            if item.report.patient_id is not None:
                names.append(("patient_id", item.report.patient_id))
            for name in names:
                if seen.setdefault(name, split) != split:
                    raise CorpusError(f"{folder / split}.jsonl:{item.line}: {name[0]} '{name[1]}' stands in {seen[name]}.jsonl too")


def _one_class_keys(path: Path, reports: Sequence[AnnotatedReport], task: Task) -> list[str]:
    counts = Counter(key for item in reports for key in item.labels)
    messages = []
    for key in task.keys:
        if counts[key] in (0, len(reports)):
            state = "never present" if counts[key] == 0 else "present in every report"
            messages.append(f"{path}: '{key}' is {state} (n={len(reports)})")
    return messages

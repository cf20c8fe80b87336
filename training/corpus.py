"""Annotated reports: JSON Lines with one object a report, in train.jsonl, dev.jsonl and test.jsonl of a corpus folder.

Every refusal is `file:line: what was found; what is expected or nearest`. Report text never enters a message.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from configs.contracts import Report
from configs.schema import Task
from pipeline.annotations import AnnotatedReport, json_lines, read_annotations
from pipeline.annotations import AnnotationError as CorpusError

__all__ = [
    "SPLITS",
    "AnnotatedReport",
    "Corpus",
    "CorpusError",
    "Split",
    "json_lines",
    "read_annotations",
    "read_corpus",
    "read_texts",
]

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The splits of one task. `warnings` are whole sentences for the user (a key that a split knows in one class only)."""

    task: Task
    splits: Mapping[Split, tuple[AnnotatedReport, ...]]
    content_hash: str
    warnings: tuple[str, ...] = field(default=())


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
    """Reports of a JSON Lines file with report_id, text and, where known, patient_id; other fields are ignored.

    Raises:
        CorpusError: a line without id or text, or a file without a report.
    """
    reports = []
    for number, data in json_lines(path):
        if not isinstance(data.get("report_id"), str) or not isinstance(data.get("text"), str) or not data["text"]:
            raise CorpusError(f"{path}:{number}: report_id and text, both non-empty strings, are expected")
        patient_id = data.get("patient_id")
        reports.append(Report(data["report_id"], data["text"], patient_id=None if patient_id in (None, "") else str(patient_id)))
    if not reports:
        raise CorpusError(f"{path}: holds no report")
    return reports


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

"""Weak labels: an archive that nobody annotated, labelled by the task's keywords as the careful rules read them.

The rules know negation, history and reference, so a label says what is stated as present; they are wrong on about one report in
ten, so a weak report counts less in training, and none may stand in a gold file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from configs.contracts import Reading, Report
from configs.schema import Task
from pipeline.chunks import plan
from pipeline.sinks import whole_file
from pipeline.sources import FileSource
from pipeline.text_as_given import UnusableRow, stage_text, text_problem
from stage2_relations.assertion import read_mentions
from stage2_relations.rules import CarefulRules

WEAK = "weak"
TOLD_EVERY_REPORTS = 64


@dataclass(frozen=True, slots=True)
class WeakLabelCounts:
    """What was written.

    Attributes:
        n_present: By key of the task, the reports that are labelled with it.
        n_empty: Reports without any label.
        unusable: Where the rows that could not be read are named, with their problems; None when there was none.
    """

    n_labelled: int
    n_unusable: int
    n_present: Mapping[str, int]
    n_empty: int
    unusable: Path | None


def weak_label(
    source: FileSource,
    task: Task,
    out: Path,
    *,
    begin: Callable[[int], None] = lambda n_reports: None,
    advance: Callable[[int], None] = lambda n_reports: None,
) -> WeakLabelCounts:
    """Writes an annotation file with a line for every usable report of `source`, in its order; memory does not grow with it.

    Rows that cannot be used are named in `<out>.unusable.jsonl`. Both files appear whole or not at all.

    Args:
        begin: Told the number of reports once.
        advance: Told now and then how many more were read.

    Raises:
        SourceError: a file or an id that cannot be used, two equal ids among them.
        SinkError: the disk refuses.
    """
    begin(plan(source).n_reports)
    rules = CarefulRules(task)
    present: Counter[str] = Counter()
    n_labelled = n_empty = n_unusable = untold = 0
    refused_path = out.with_name(out.name + ".unusable.jsonl")
    with ExitStack() as stack:
        refused = stack.enter_context(stack.enter_context(whole_file(refused_path)).open("w", encoding="utf-8"))
        file = stack.enter_context(stack.enter_context(whole_file(out)).open("w", encoding="utf-8"))
        for report in source.reports():
            problem = _problem(report)
            if problem is not None:
                n_unusable += 1
                _write(refused, {"report_id": report.report_id, "problem": problem})
            else:
                line = _line(task, rules, report)
                n_labelled += 1
                n_empty += not line["labels"]
                present.update(list(line["labels"]))
                _write(file, line)
            untold += 1
            if untold == TOLD_EVERY_REPORTS:
                advance(untold)
                untold = 0
        advance(untold)
    if n_unusable == 0:
        refused_path.unlink()
    counts = {key: present[key] for key in task.keys}
    return WeakLabelCounts(n_labelled, n_unusable, counts, n_empty, refused_path if n_unusable else None)


def _problem(report: Report) -> str | None:
    return report.problem if isinstance(report, UnusableRow) else text_problem(report.text)


def _line(task: Task, rules: CarefulRules, report: Report) -> dict[str, Mapping[str, list[str]] | str]:
    text = stage_text(report.text).text
    about = {"patient_id": report.patient_id, "date": report.study_date}
    labels = _labels(rules.read(text, read_mentions(task, text)))
    line: dict[str, Mapping[str, list[str]] | str] = {"report_id": report.report_id, "task": task.name}
    line.update({name: found for name, found in about.items() if found is not None})
    return {**line, "text": text, "labels": labels, "source": WEAK}


def _labels(reading: Reading) -> dict[str, list[str]]:
    present = [finding.key for finding in reading.entities if finding.present]
    return {key: [relation.value for relation in reading.relations if relation.subject == key] for key in present}


def _write(file: IO[str], line: Mapping[str, object]) -> None:
    file.write(json.dumps(line, ensure_ascii=False) + "\n")

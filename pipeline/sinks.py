"""Where records go: JSON Lines, CSV or Parquet, each streamed.

CSV columns (`CSV_COLUMNS`), one row a relation; a present entity without a relation has a row with an empty `value`; a report
without any present entity (no findings, failed, rejected) has one row with an empty `entity`. So every report has at least one row.
Positions are characters of the text as given; an empty cell means: none.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from configs.contracts import Span, TaggedReport
from pipeline.records import record_line, record_schema, record_table

FORMATS = ("jsonl", "csv", "parquet")
PARQUET_GROUP_RECORDS = 8192

CSV_COLUMNS = (
    "report_id",
    "task",
    "status",
    "entity",
    "entity_confidence",
    "value",
    "relation_confidence",
    "entity_start",
    "entity_end",
    "value_start",
    "value_end",
    "hints",
    "problem",
    "fingerprint",
    "patient_id",
    "study_date",
)


class SinkError(Exception):
    """A file that cannot be written: path and why."""


@dataclass(frozen=True, slots=True)
class JsonLinesSink:
    """Records as they lie in the part files."""

    stream: IO[str]

    def write(self, records: Iterable[TaggedReport]) -> int:
        """Returns how many records were written."""
        n_records = 0
        for record in records:
            self.stream.write(record_line(record) + "\n")
            n_records += 1
        return n_records


@dataclass(frozen=True, slots=True)
class CsvSink:
    """Flat rows, see the module's text."""

    stream: IO[str]

    def write(self, records: Iterable[TaggedReport]) -> int:
        """Returns how many records, not rows, were written."""
        writer = csv.writer(self.stream, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        n_records = 0
        for record in records:
            writer.writerows(csv_rows(record))
            n_records += 1
        return n_records


@dataclass(frozen=True, slots=True)
class ParquetSink:
    """The columns of `pipeline.records.record_schema`, in row groups of 8192 records."""

    path: Path

    def write(self, records: Iterable[TaggedReport]) -> int:
        """Returns how many records were written."""
        import pyarrow.parquet as pq

        rest = iter(records)
        n_records = 0
        with pq.ParquetWriter(self.path, record_schema()) as writer:
            while some := list(islice(rest, PARQUET_GROUP_RECORDS)):
                writer.write_table(record_table(some))
                n_records += len(some)
        return n_records


def csv_rows(record: TaggedReport) -> list[list[object]]:
    """The rows of one record, in the order of CSV_COLUMNS."""
    head: list[object] = [record.report_id, record.task, record.status]
    tail: list[object] = [
        None if record.hints is None else " ".join(record.hints),
        record.problem,
        record.provenance.get("fingerprint"),
        record.patient_id,
        record.study_date,
    ]
    present = {finding.key: finding for finding in record.entities or () if finding.present}
    rows: list[list[object]] = []
    for relation in record.relations or ():
        finding = present.get(relation.subject)
        entity = [relation.subject, None if finding is None else finding.confidence]
        value = [relation.value, relation.confidence]
        rows.append([*head, *entity, *value, *_ends(relation.subject_span), *_ends(relation.value_span), *tail])
    related = {relation.subject for relation in record.relations or ()}
    for finding in present.values():
        if finding.key not in related:
            first = finding.spans[0] if finding.spans else None
            rows.append([*head, finding.key, finding.confidence, None, None, *_ends(first), None, None, *tail])
    return rows or [[*head, *[None] * 8, *tail]]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place at the end; after an error `path` is as it was.

    Raises:
        SinkError: the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SinkError(f"{path}: cannot be written: {error.strerror or type(error).__name__}") from None
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError as error:
            raise SinkError(f"{temporary}: cannot be removed: {error.strerror}") from None


def _ends(span: Span | None) -> tuple[int | None, int | None]:
    return (None, None) if span is None else (span.start, span.end)

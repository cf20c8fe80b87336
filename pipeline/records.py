"""Records as JSON Lines and as Parquet: one row a report, and how they are checked when they are read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from configs.contracts import EntityFinding, Relation, Span, Status, TaggedReport

if TYPE_CHECKING:
    import pyarrow as pa

STATUSES: tuple[str, ...] = get_args(Status)
CONFIDENCE_DIGITS = 4

_RECORD_FIELDS = ("report_id", "task", "status", "entities", "relations", "hints", "problem", "provenance")
_OPTIONAL_FIELDS = ("patient_id", "study_date")  # a JSON line has them only where the input did; Parquet has both columns
_ENTITY_FIELDS = ("key", "present", "confidence", "spans")
_RELATION_FIELDS = ("subject", "value", "confidence", "subject_span", "value_span")


class RecordError(Exception):
    """A line or row that is no record: `file:line: what was found; what is expected`."""


def record_object(record: TaggedReport) -> dict[str, Any]:
    """The record as JSON types, keys in their fixed order, confidences rounded to four digits."""
    entities = record.entities
    relations = record.relations
    found = {
        "report_id": record.report_id,
        "task": record.task,
        "status": record.status,
        "entities": None if entities is None else [_entity_object(finding) for finding in entities],
        "relations": None if relations is None else [_relation_object(relation) for relation in relations],
        "hints": None if record.hints is None else list(record.hints),
        "problem": record.problem,
        "provenance": dict(record.provenance),
    }
    return found | {name: known for name in _OPTIONAL_FIELDS if (known := getattr(record, name)) is not None}


def record_line(record: TaggedReport) -> str:
    """The record as one compact JSON line without its line end. Raises ValueError for a confidence that is nan or infinite."""
    return json.dumps(record_object(record), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def record_from_line(line: str | bytes, *, where: str) -> TaggedReport:
    """The record of one JSON line. `where` is its file:line. Raises RecordError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        raise RecordError(f"{where}: is no JSON") from None
    return record_from_object(found, where=where)


def record_from_object(found: object, *, where: str) -> TaggedReport:
    """The record of one JSON object or Parquet row, checked. Raises RecordError."""
    reader = _Reader(where)
    row = reader.fields(found, _RECORD_FIELDS, "record", optional=_OPTIONAL_FIELDS)
    status = reader.text(row["status"], "status")
    if status not in STATUSES:
        raise reader.wrong("status", status, "one of " + ", ".join(STATUSES))
    readable = status in ("ok", "no_findings")
    for name in ("entities", "relations"):
        if (row[name] is not None) != readable:
            raise reader.wrong(name, row[name], f"{'a list' if readable else 'null'} where status is {status}")
    problem = reader.text_or_none(row["problem"], "problem")
    if (problem is None) != readable:
        raise reader.wrong("problem", problem, f"{'null' if readable else 'a text'} where status is {status}")
    entities = tuple(map(reader.entity, reader.items(row["entities"], "entities"))) if readable else None
    relations = tuple(map(reader.relation, reader.items(row["relations"], "relations"))) if readable else None
    if entities is not None and any(finding.present for finding in entities) != (status == "ok"):
        raise reader.wrong("status", status, "ok where an entity is present, else no_findings")
    provenance = row["provenance"]
    if not isinstance(provenance, Mapping) or not all(isinstance(value, str) for value in provenance.values()):
        raise reader.wrong("provenance", provenance, "an object of texts")
    hints = row["hints"]
    return TaggedReport(
        report_id=reader.text(row["report_id"], "report_id"),
        task=reader.text(row["task"], "task"),
        status=status,  # type: ignore[arg-type]  # checked against STATUSES above
        entities=entities,
        relations=relations,
        hints=None if hints is None else tuple(reader.text(hint, "hints") for hint in reader.items(hints, "hints")),
        problem=problem,
        provenance=dict(provenance),
        patient_id=reader.text_or_none(row.get("patient_id"), "patient_id"),
        study_date=reader.text_or_none(row.get("study_date"), "study_date"),
    )


def read_records(path: Path) -> Iterator[TaggedReport]:
    """Records of a run directory (its part files in order), a .jsonl or a .parquet file, streamed. Raises RecordError."""
    if path.is_dir():
        parts = sorted((path / "parts").glob("part-*.jsonl"), key=lambda part: int(part.name.split("-")[1]))
        if not parts:
            raise RecordError(f"{path}: holds no part files of a run")
        for part in parts:
            yield from read_json_lines(part)
    elif path.suffix.lower() == ".jsonl":
        yield from read_json_lines(path)
    elif path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
    else:
        raise RecordError(f"{path}: a run directory, a .jsonl or a .parquet file is expected")


def record_schema() -> pa.Schema:
    """The columns of records in Parquet; spans are lists of two characters positions, [start, end)."""
    import pyarrow as pa

    span = pa.list_(pa.int64())
    entity = pa.struct([("key", pa.string()), ("present", pa.bool_()), ("confidence", pa.float64()), ("spans", pa.list_(span))])
    relation = pa.struct(
        [
            ("subject", pa.string()),
            ("value", pa.string()),
            ("confidence", pa.float64()),
            ("subject_span", span),
            ("value_span", span),
        ]
    )
    return pa.schema(
        [
            pa.field("report_id", pa.string(), nullable=False),
            pa.field("task", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("entities", pa.list_(entity)),
            pa.field("relations", pa.list_(relation)),
            pa.field("hints", pa.list_(pa.string())),
            pa.field("problem", pa.string()),
            pa.field("provenance", pa.struct([("fingerprint", pa.string())])),
            pa.field("patient_id", pa.string()),
            pa.field("study_date", pa.string()),
        ]
    )


def record_table(records: Iterable[TaggedReport]) -> pa.Table:
    """The records as one Arrow table of `record_schema`."""
    import pyarrow as pa

    return pa.Table.from_pylist([record_object(record) for record in records], schema=record_schema())


def read_json_lines(path: Path) -> Iterator[TaggedReport]:
    """Records of one JSON Lines file. Raises RecordError, for a last line without line end too."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    raise RecordError(f"{path}:{number}: the last line has no line end; the file was cut short")
                yield record_from_line(line, where=f"{path}:{number}")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None


def _read_parquet(path: Path) -> Iterator[TaggedReport]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield record_from_object(row, where=f"{path}: row {number}")
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from None


def _span_list(span: Span | None) -> list[int] | None:
    return None if span is None else [span.start, span.end]


def _rounded(confidence: float | None) -> float | None:
    return None if confidence is None else round(float(confidence), CONFIDENCE_DIGITS)


def _entity_object(finding: EntityFinding) -> dict[str, Any]:
    return {
        "key": finding.key,
        "present": finding.present,
        "confidence": _rounded(finding.confidence),
        "spans": [[span.start, span.end] for span in finding.spans],
    }


def _relation_object(relation: Relation) -> dict[str, Any]:
    return {
        "subject": relation.subject,
        "value": relation.value,
        "confidence": _rounded(relation.confidence),
        "subject_span": _span_list(relation.subject_span),
        "value_span": _span_list(relation.value_span),
    }


class _Reader:
    """Reads one record; every refusal says where it stands."""

    def __init__(self, where: str) -> None:
        self.where = where

    def wrong(self, name: str, found: object, expected: str) -> RecordError:
        kind = repr(found) if found is None or isinstance(found, (bool, int, float)) else type(found).__name__
        return RecordError(f"{self.where}: '{name}' is {kind}; expected {expected}")

    def fields(self, found: object, names: tuple[str, ...], what: str, *, optional: tuple[str, ...] = ()) -> Mapping[str, Any]:
        if not isinstance(found, Mapping):
            raise RecordError(f"{self.where}: {what} is {type(found).__name__}; an object is expected")
        for name in names:
            if name not in found:
                raise RecordError(f"{self.where}: {what} has no '{name}'")
        unknown = [name for name in found if name not in names and name not in optional]
        if unknown:
            raise RecordError(f"{self.where}: {what} has a field '{unknown[0]}' that is not known")
        return found

    def text(self, found: object, name: str) -> str:
        if not isinstance(found, str):
            raise self.wrong(name, found, "a text")
        return found

    def text_or_none(self, found: object, name: str) -> str | None:
        return None if found is None else self.text(found, name)

    def items(self, found: object, name: str) -> list[Any]:
        if not isinstance(found, list):
            raise self.wrong(name, found, "a list")
        return found

    def confidence(self, found: object, name: str) -> float | None:
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 <= found <= 1:
            raise self.wrong(name, found, "a number in [0, 1] or null")
        return float(found)

    def span(self, found: object, name: str) -> Span | None:
        if found is None:
            return None
        pair = self.items(found, name)
        if len(pair) != 2 or not all(type(end) is int for end in pair) or not 0 <= pair[0] < pair[1]:
            raise self.wrong(name, found, "two character positions [start, end), start before end")
        return Span(pair[0], pair[1])

    def entity(self, found: object) -> EntityFinding:
        name = "entities"
        row = self.fields(found, _ENTITY_FIELDS, name)
        if not isinstance(row["present"], bool):
            raise self.wrong(f"{name}.present", row["present"], "true or false")
        spans = [self.span(item, f"{name}.spans") for item in self.items(row["spans"], f"{name}.spans")]
        if None in spans:
            raise self.wrong(f"{name}.spans", None, "two character positions")
        return EntityFinding(
            key=self.text(row["key"], f"{name}.key"),
            present=row["present"],
            confidence=self.confidence(row["confidence"], f"{name}.confidence"),
            spans=tuple(span for span in spans if span is not None),
        )

    def relation(self, found: object) -> Relation:
        name = "relations"
        row = self.fields(found, _RELATION_FIELDS, name)
        return Relation(
            subject=self.text(row["subject"], f"{name}.subject"),
            value=self.text(row["value"], f"{name}.value"),
            confidence=self.confidence(row["confidence"], f"{name}.confidence"),
            subject_span=self.span(row["subject_span"], f"{name}.subject_span"),
            value_span=self.span(row["value_span"], f"{name}.value_span"),
        )

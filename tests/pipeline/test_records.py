from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.contracts import EntityFinding, Relation, Span, TaggedReport
from pipeline.records import RecordError, read_records, record_from_line, record_line, record_object
from pipeline.sinks import ParquetSink

OK = TaggedReport(
    "r1",
    "chest_ct",
    "ok",
    (EntityFinding("nodule", True, 0.97, (Span(10, 16),)), EntityFinding("mass", False, 0.012345)),
    (Relation("nodule", "rul", 0.93, Span(10, 16), Span(20, 23)),),
    ("nodule",),
    None,
    {"fingerprint": "abc"},
)

texts = st.text(st.characters(codec="utf-8"), max_size=8)
spans = st.tuples(st.integers(0, 10**6), st.integers(1, 99)).map(lambda p: Span(p[0], p[0] + p[1]))
confidences = st.none() | st.integers(0, 10_000).map(lambda n: n / 10_000)
findings = st.builds(EntityFinding, texts, st.booleans(), confidences, st.lists(spans, max_size=3).map(tuple))
relations = st.builds(Relation, texts, texts, confidences, st.none() | spans, st.none() | spans)


@st.composite
def records(draw: st.DrawFn) -> TaggedReport:
    hints = draw(st.none() | st.lists(texts, max_size=3).map(tuple))
    fingerprint = {"fingerprint": draw(texts)}
    if draw(st.booleans()):
        status = draw(st.sampled_from(["failed", "rejected"]))
        return TaggedReport(draw(texts), draw(texts), status, None, None, hints, draw(texts), fingerprint)
    entities = tuple(draw(st.lists(findings, max_size=4)))
    status = "ok" if any(finding.present for finding in entities) else "no_findings"
    return TaggedReport(
        draw(texts), draw(texts), status, entities, tuple(draw(st.lists(relations, max_size=4))), hints, None, fingerprint
    )


def test_a_record_is_one_compact_line_with_its_keys_in_order() -> None:
    assert record_line(OK) == (
        '{"report_id":"r1","task":"chest_ct","status":"ok",'
        '"entities":[{"key":"nodule","present":true,"confidence":0.97,"spans":[[10,16]]},'
        '{"key":"mass","present":false,"confidence":0.0123,"spans":[]}],'
        '"relations":[{"subject":"nodule","value":"rul","confidence":0.93,"subject_span":[10,16],"value_span":[20,23]}],'
        '"hints":["nodule"],"problem":null,"provenance":{"fingerprint":"abc"}}'
    )


@given(records())
def test_json_lines_come_back_as_they_went(record: TaggedReport) -> None:
    line = record_line(record)
    assert "\n" not in line
    assert record_from_line(line, where="x:1") == record


@settings(deadline=None)
@given(st.lists(records(), max_size=5))
def test_parquet_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, some: list[TaggedReport]) -> None:
    path = tmp_path_factory.mktemp("parquet") / "records.parquet"
    ParquetSink(path).write(some)
    assert list(read_records(path)) == some


@pytest.mark.parametrize("confidence", [float("nan"), float("inf")])
def test_a_confidence_that_is_no_number_is_never_written(confidence: float) -> None:
    with pytest.raises(ValueError):
        record_line(TaggedReport("r", "t", "ok", (EntityFinding("nodule", True, confidence),), (), None, None))


def damaged(**changes: object) -> str:
    return json.dumps(record_object(OK) | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f:3: is no JSON"),
        ("[1]", "f:3: record is list; an object is expected"),
        ('{"report_id": "r1"}', "f:3: record has no 'task'"),
        (damaged(extra=1), "f:3: record has a field 'extra' that is not known"),
        (damaged(status="fine"), "f:3: 'status' is str; expected one of ok, no_findings, failed, rejected"),
        (damaged(status="failed"), "f:3: 'entities' is list; expected null where status is failed"),
        (damaged(entities=None), "f:3: 'entities' is None; expected a list where status is ok"),
        (damaged(problem="late"), "f:3: 'problem' is str; expected null where status is ok"),
        (damaged(status="no_findings"), "f:3: 'status' is no_findings; expected ok where an entity is present, else no_findings"),
        (damaged(report_id=7), "f:3: 'report_id' is 7; expected a text"),
        (damaged(hints="nodule"), "f:3: 'hints' is str; expected a list"),
        (damaged(provenance={"fingerprint": 1}), "f:3: 'provenance' is dict; expected an object of texts"),
        (damaged(relations=[{"subject": "nodule"}]), "f:3: relations has no 'value'"),
        (
            damaged(entities=[{"key": "nodule", "present": True, "confidence": 1.5, "spans": []}]),
            "f:3: 'entities.confidence' is 1.5; expected a number in [0, 1] or null",
        ),
        (
            damaged(entities=[{"key": "nodule", "present": True, "confidence": None, "spans": [[4, 4]]}]),
            "f:3: 'entities.spans' is list; expected two character positions [start, end), start before end",
        ),
        (
            damaged(entities=[{"key": "nodule", "present": 1, "confidence": None, "spans": []}]),
            "f:3: 'entities.present' is 1; expected true or false",
        ),
    ],
)
def test_a_line_that_is_no_record_says_where_and_why(line: str, message: str) -> None:
    with pytest.raises(RecordError) as error:
        record_from_line(line, where="f:3")
    assert str(error.value) == message.replace("'status' is no_findings", "'status' is str")


def test_a_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record_line(OK) + "\n" + record_line(OK), encoding="utf-8")
    with pytest.raises(RecordError, match="2: the last line has no line end"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["records.parquet", "records.txt", "missing.jsonl"])
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(b"PAR1 not really")
    with pytest.raises(RecordError, match=name):
        list(read_records(path))

from __future__ import annotations

import traceback
import unicodedata
from collections.abc import Sequence

import pytest

from configs.contracts import EntityFlags, Reading, Report, Span, Unread
from configs.schema import Task
from pipeline.run import Pipeline, StageBugError
from pipeline.text_as_given import UnusableRow

PROVENANCE = {"fingerprint": "f"}


def tag(pipeline: Pipeline, *texts: str):
    return pipeline.tag([Report(f"r{n}", text) for n, text in enumerate(texts)])


def test_a_report_goes_from_text_to_record(task: Task, flagger, mapper) -> None:
    (record,) = tag(Pipeline(task, flagger, mapper, PROVENANCE), "A nodule, right lung.")
    assert (record.report_id, record.task, record.status, record.hints) == ("r0", "tiny", "ok", ("nodule",))
    assert [(finding.key, finding.present) for finding in record.entities] == [("nodule", True), ("mass", False)]
    assert (record.relations[0].subject_span, record.relations[0].value_span) == (Span(2, 8), Span(10, 15))
    assert (record.problem, record.provenance) == (None, PROVENANCE)


def test_spans_lead_back_to_korean_in_nfd(task: Task, mapper) -> None:
    given = unicodedata.normalize("NFD", "크기가 큰 우측 결절")
    (record,) = tag(Pipeline(task, None, mapper, PROVENANCE), given)
    relation = record.relations[0]
    for span, word in ((relation.subject_span, "결절"), (relation.value_span, "우측"), (record.entities[0].spans[0], "결절")):
        assert given[span.start : span.end] == unicodedata.normalize("NFD", word)


def test_unreadable_answer_is_failed_and_not_empty(task: Task, flagger, mapper) -> None:
    failed, fine = tag(Pipeline(task, flagger, mapper, PROVENANCE), "CANNOT, nodule", "nodule")
    assert (failed.status, failed.entities, failed.relations) == ("failed", None, None)
    assert (failed.problem, failed.hints) == ("answer is cut after 12 tokens", ("nodule",))
    assert fine.status == "ok"


def test_nothing_present_is_no_findings(task: Task, mapper) -> None:
    (record,) = tag(Pipeline(task, None, mapper, PROVENANCE), "normal")
    assert (record.status, record.relations, record.hints) == ("no_findings", (), None)


@pytest.mark.parametrize(("text", "stage"), [("NOFLAG secret", "stage 1"), ("BUG secret", "stage 2")])
def test_a_stage_that_raises_fails_its_row_alone_and_never_quotes_it(text: str, stage: str, task, flagger, mapper) -> None:
    before, failed, after = tag(Pipeline(task, flagger, mapper, PROVENANCE), "nodule", text, "mass")
    assert (before.status, failed.status, after.status) == ("ok", "failed", "ok")
    assert failed.problem.startswith(f"{stage}: ValueError at conftest.py:")
    assert "secret" not in failed.problem


def test_a_stage_that_raises_for_every_row_is_a_bug_and_goes_up_without_its_message(task, mapper) -> None:
    with pytest.raises(StageBugError, match=r"^stage 2: ValueError for each of 2 reports.*, conftest.py:\d+\)$") as error:
        tag(Pipeline(task, None, mapper, PROVENANCE), "BUG 1", "BUG 2")
    assert "quotes" not in "".join(traceback.format_exception(error.value))


def test_a_stages_own_error_fails_every_row_it_meets(task) -> None:
    from stage2_relations.language_model import LanguageModelError

    class Away:
        def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
            raise LanguageModelError("server is away")

    records = tag(Pipeline(task, None, Away(), PROVENANCE), "nodule", "mass")
    assert [(record.status, record.problem) for record in records] == [("failed", "stage 2: server is away")] * 2


def test_a_mapper_that_forgets_a_report_is_a_bug(task) -> None:
    class Forgetful:
        def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
            return [Unread("x")] * (len(reports) - 1)

    with pytest.raises(StageBugError, match=r"stage 2: ValueError for each of 2 reports.* run.py:\d+\)$"):
        tag(Pipeline(task, None, Forgetful(), PROVENANCE), "nodule", "mass")


def test_bad_texts_are_rejected_and_reach_no_stage(task, mapper) -> None:
    reports = [
        Report("blank", " "),
        Report("null", None),
        UnusableRow("short", "", None, None, "row has 2 fields"),
        Report("long", "x" * 21),
        Report("fine", "nodule"),
    ]
    records = Pipeline(task, None, mapper, PROVENANCE, max_report_chars=20).tag(reports)
    assert [record.status for record in records] == ["rejected"] * 4 + ["ok"]
    assert [record.problem for record in records[2:4]] == ["row has 2 fields", "text has 21 characters; at most 20 are read"]
    assert all(record.entities is None and record.relations is None and record.hints is None for record in records[:4])
    assert mapper.seen == ["nodule"]


def test_equal_texts_are_read_once_and_written_each(task, mapper) -> None:
    records = tag(Pipeline(task, None, mapper, PROVENANCE), "nodule", "mass", "nodule")
    assert mapper.seen == ["nodule", "mass"]
    assert [record.report_id for record in records] == ["r0", "r1", "r2"]
    assert records[0].entities == records[2].entities


def test_the_encoder_alone_decides_and_relates_nothing(task, flagger) -> None:
    (record,) = tag(Pipeline(task, flagger, None, PROVENANCE), "no mass; a nodule")
    assert (record.status, record.relations) == ("ok", ())
    assert [(finding.key, finding.present, finding.confidence) for finding in record.entities] == [
        ("nodule", True, 1.0),
        ("mass", True, 1.0),
    ]
    assert record.entities[0].spans == (Span(11, 17),)


def test_no_reports_give_no_records(task, flagger, mapper) -> None:
    assert Pipeline(task, flagger, mapper, PROVENANCE).tag([]) == []


def test_a_pipeline_of_nothing_is_refused(task: Task) -> None:
    with pytest.raises(ValueError, match="a flagger, a mapper or both"):
        Pipeline(task, None, None, PROVENANCE)

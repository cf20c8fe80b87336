"""Where relations stand. A row is a report with «subject» and ‹value› marked as they must be found."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.contracts import Relation, Span
from configs.schema import load_task
from stage2_relations.assertion import AssertedMention
from stage2_relations.ground import EvidenceReader, Linking, _distance, _nearest

CHEST = load_task("chest_ct")
READER = EvidenceReader(CHEST)
STEP = CHEST.steps[0]

MARKED = {
    "glued particles": ("nodule", "rul", "‹RUL›의 «nodule»이 8 mm로 증가."),
    "Korean words and particles": ("consolidation", "lll", "‹좌하엽›에 «경화» 소견이 보임."),
    "Korean order": ("nodule", "rul", "‹우상엽›에서 «결절»은 변화 없음. 좌하엽에는 무기폐."),
    "not the negated mention": ("nodule", "lll", "No nodule in RUL. «Nodule», 6 mm, ‹LLL›."),
    "not the Korean negated mention": ("nodule", "rll", "RUL에 nodule은 없음. ‹RLL›에 «nodule» 있음."),
    "not the resolved mention": ("nodule", "rml", "nodule in LUL: resolved. new «nodule» in ‹RML›."),
    "not the history": ("mass", "lll", "History: mass in RUL.\n4 cm «mass» in ‹LLL›."),
    "the nearer of two": ("nodule", "lul", "nodule in RML.\n«nodule» in ‹LUL›."),
    "the next sentence": ("nodule", "rul", "«Nodule», 8 mm. It lies in the ‹RUL›."),
    "own composite": ("ggo", "bll", "«GGO» in ‹both lower lobes›."),
    "value of two keys": ("nodule", "left_lung", "«nodules» in ‹both lungs›."),
    "implied value takes the subject": ("pleural_effusion", "pleural", "Right «‹pleural effusion›»."),
    "implied value in Korean": ("pleural_effusion", "pleural", "우측 «‹흉수›» 소량."),
}


def marked(text: str) -> tuple[str, Span, Span]:
    plain = re.sub("[«»‹›]", "", text)

    def span(opening: str, closing: str) -> Span:
        start, end = (len(re.sub("[«»‹›]", "", text[: text.index(mark)])) for mark in (opening, closing))
        return Span(start, end)

    return plain, span("«", "»"), span("‹", "›")


@pytest.mark.parametrize("name", MARKED)
def test_relation_stands_at_the_asserted_subject_and_its_value(name: str) -> None:
    subject, value, text = MARKED[name]
    plain, subject_span, value_span = marked(text)
    found = READER.read(plain).relation_spans(subject, value)
    assert [plain[span.start : span.end] for span in found if span] == [
        plain[span.start : span.end] for span in (subject_span, value_span)
    ]
    assert found == (subject_span, value_span)


def test_subject_in_unknown_words_has_no_span_but_its_value_has() -> None:
    text = "8 mm nxdxlx in RUL."
    assert READER.read(text).relation_spans("nodule", "rul") == (None, Span(15, 18))


def test_composite_without_its_own_words_stands_at_a_part() -> None:
    text = "GGO in RLL and LLL."
    assert READER.read(text).relation_spans("ggo", "bll") == (Span(0, 3), Span(7, 10))


def test_relation_without_a_mention_of_its_value_is_dropped_only_with_grounding() -> None:
    evidence = READER.read("nodule in RUL.")
    relations = [Relation("nodule", "lll", 0.9), Relation("nodule", "rul", 0.8)]
    assert [(r.value, r.confidence) for r in evidence.grounded(relations, drop=True)] == [("rul", 0.8)]
    kept = evidence.grounded(relations, drop=False)
    assert [(r.value, r.subject_span, r.value_span) for r in kept] == [
        ("lll", Span(0, 6), None),
        ("rul", Span(0, 6), Span(10, 13)),
    ]


def test_implied_relation_of_a_subject_in_unknown_words_is_kept_without_spans() -> None:
    (relation,) = READER.read("fluid around the lung").grounded([Relation("pleural_effusion", "pleural")], drop=True)
    assert (relation.subject_span, relation.value_span) == (None, None)


TEXT = "Nodule in RUL.\nAlso LLL is abnormal.\nClear airways.\nScar of the lingula."
OFFERED: dict[Linking, tuple[set[str], set[str], bool]] = {
    "rules": ({"rul"}, {"rul"}, False),
    "sentence": ({"rul"}, {"rul"}, True),
    "near": ({"rul", "lll"}, set(), True),
    "none": ({"rul", "lll", "left_lingula"}, set(), False),
}


@pytest.mark.parametrize("linking", OFFERED)
def test_linking_says_what_the_text_decides(linking: Linking) -> None:
    offered = READER.read(TEXT).offered_values(STEP, "nodule", Span(0, len(TEXT)), linking=linking)
    assert (set(offered.values), set(offered.required), offered.needs_value) == OFFERED[linking]


@pytest.mark.parametrize("linking", OFFERED)
def test_no_value_is_offered_that_the_report_does_not_assert(linking: Linking) -> None:
    text = "nodule, 5 mm. RUL: no abnormality. 이전에 있던 RML의 mass는 소실."
    values = READER.read(text).offered_values(STEP, "nodule", Span(0, len(text)), linking=linking).values
    assert not {"lll", "lul", "bll", "pleural"} & set(values)


def test_window_offers_only_what_stands_in_it() -> None:
    window = Span(0, 15)
    offered = READER.read(TEXT).offered_values(STEP, "nodule", window, linking="none")
    assert offered.values == ("rul",)


def test_implied_value_is_required_though_not_mentioned() -> None:
    text = "Right effusion."
    offered = READER.read(text).offered_values(STEP, "pleural_effusion", Span(0, len(text)), linking="none")
    assert (offered.values, offered.required) == (("pleural",), {"pleural"})


def mentions(name: str, starts: list[int]) -> list[AssertedMention]:
    return [AssertedMention(name, Span(start, start + 4), start // 40, "present") for start in sorted(starts)]


POSITIONS = st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True)


@given(POSITIONS, POSITIONS)
def test_the_nearest_pair_is_the_nearest_of_all_pairs(subject_starts: list[int], value_starts: list[int]) -> None:
    subjects, values = mentions("nodule", subject_starts), mentions("rul", value_starts)
    assert _distance(*_nearest(subjects, values)) == min(_distance(s, v) for s in subjects for v in values)


def test_the_place_of_a_relation_in_a_report_of_50_000_characters_is_found_in_seconds() -> None:
    evidence = EvidenceReader(load_task("brain_mri")).read("glioma again. " * 3600)
    begin_s = time.monotonic()
    assert evidence.relation_spans("glioma", "stable", loose=True)[1] is not None
    assert time.monotonic() - begin_s < 5

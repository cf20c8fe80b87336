"""Two sizes that may tell a course: what is asked for them, and that rules do not read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.comparisons import compared_sizes
from configs.schema import load_task
from stage2_relations.ground import EvidenceReader

BRAIN = load_task("brain_mri")
MEASURED = {"larger": "progression", "smaller": "improvement", "equal": "stable"}
READER = EvidenceReader(BRAIN)
CHANGED = {"progression", "improvement"}

COMPARED = {
    "R temporal 11 -> 5, L frontal": {"improvement"},
    "31 mm (2023-08) -> 39 mm": {"progression"},
    "52 x 36 -> 20 x 9 mm remnant": {"improvement"},
    "R front 12->12": {"stable"},
    "8 mm -> 1.2 cm": {"progression"},
    "12 mm -> 1.2 cm": {"stable"},
    "1.2 cm (8 mm)": {"progression"},
    "1.5 cm (previously 15 mm)": {"stable"},
    "0.9 cm (14 mm)": {"improvement"},
    "A 9 mm; B 12 mm, previously 12 mm": {"stable", *CHANGED},
    "12 -> 9 -> 14 mm": CHANGED,
    "뇌전이 8개 → 23개 이상": {"progression"},
    "L MFG met 6 mm (14)": {"improvement"},
    "‹9 mm› thick; it was 5 mm in October": CHANGED,
    "13 mm and was 13 mm": {"stable"},
    "T2 tissue 30 mm, 30 mm in June": {"stable"},
    "31 mm long in March, is 40 mm long at present": CHANGED,
}
NOT_COMPARED = [
    "12 x 9 mm nodule",
    "lesions of 4 mm and 6 mm",
    "compared with 2023-08-15 and 2022-11-15",
    "5 mm (#20-23)",
    "Glioma of 24 mm (WHO grade 2)",
    "12 mm (image 45)",
    "9 mm (series 12)",
    "12 mm (of 3)",
    "on 3/5 and 4/5, 2 cm",
    "",
]


@pytest.mark.parametrize("text", COMPARED)
def test_compared_sizes_tell_the_values_that_they_may(text: str) -> None:
    plain = text.replace("‹", "").replace("›", "")
    found = compared_sizes(plain, MEASURED)
    assert {mention.name for mention in found} == COMPARED[text]
    assert all(any(c.isdigit() for c in plain[mention.span.start : mention.span.end]) for mention in found)


@pytest.mark.parametrize("text", NOT_COMPARED)
def test_sizes_that_are_not_compared_tell_nothing(text: str) -> None:
    assert compared_sizes(text, MEASURED) == []


@given(st.text(alphabet="0123456789 .-><mcx(),was now", max_size=80))
def test_any_text_gives_spans_inside_of_it(text: str) -> None:
    assert all(0 <= m.span.start < m.span.end <= len(text) for m in compared_sizes(text, MEASURED))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Oligodendroglioma. The residual is superimposable on that of May.", "stable"),
        ("Metastases, SRS in May: left temporal 9 mm (14).", "improvement"),
        ("교종, 벽을 따라 결절이 굵어져 있음.", "progression"),
    ],
)
def test_a_course_in_loose_words_may_be_asked_and_is_shown_in_the_text_but_rules_do_not_read_it(text: str, value: str) -> None:
    evidence = READER.read(text)
    key = next(finding.key for finding in evidence.rules.entities if finding.present)
    assert value in {mention.name for mention in evidence.loose}
    assert value not in {relation.value for relation in evidence.rules.relations}
    assert evidence.relation_spans(key, value, loose=True)[1] is not None
    assert evidence.relation_spans(key, value)[1] is None


def test_a_keyword_is_shown_before_loose_words() -> None:
    text = "Glioma: the nodule has grown, 9 mm (14)."
    span = READER.read(text).relation_spans("glioma", "progression", loose=True)[1]
    assert span is not None
    assert text[span.start : span.end] == "grown"


def test_a_task_without_courses_has_no_loose_mentions() -> None:
    assert EvidenceReader(load_task("chest_ct")).read("Nodule 9 mm (14), now 5 mm, stays.").loose == ()

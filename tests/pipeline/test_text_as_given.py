from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.contracts import Span
from pipeline.text_as_given import stage_text, text_problem

HARD = st.sampled_from(
    "각ᄀ" + "\u1161\u11a8\u1100가힣é\u0301\u0323e\u0344\u212b\u1e9b\u0f73\u09c7\u09be\u0338=\u0958 \n\t\x07\x85aZ5."
)
TEXTS = st.text(alphabet=st.one_of(HARD, st.characters(codec="utf-8", exclude_characters="\0")), max_size=40)


@given(TEXTS)
def test_stages_read_the_whole_text_in_nfc_with_controls_as_spaces(text: str) -> None:
    spaced = "".join(" " if (unicodedata.category(c) == "Cc" and not c.isspace()) or c in "\x1c\x1d\x1e\x1f" else c for c in text)
    assert stage_text(text).text == unicodedata.normalize("NFC", spaced)


@given(TEXTS, st.data())
def test_a_span_leads_back_to_what_it_was_composed_of(text: str, data: st.DataObject) -> None:
    read = stage_text(text)
    if not read.text:
        return
    start = data.draw(st.integers(0, len(read.text) - 1))
    span = Span(start, data.draw(st.integers(start + 1, len(read.text))))
    back = read.as_given(span)
    assert read.text[span.start : span.end] in stage_text(text[back.start : back.end]).text


@given(TEXTS)
def test_offsets_never_step_back_and_cover_the_text(text: str) -> None:
    read = stage_text(text)
    spans = [read.as_given(Span(i, i + 1)) for i in range(len(read.text))]
    assert all(one.start <= two.start and one.end <= two.end for one, two in pairwise(spans))
    assert set(range(len(text))) <= {i for span in spans for i in range(span.start, span.end)}


def test_korean_taken_apart_leads_back_to_its_jamo() -> None:
    given = unicodedata.normalize("NFD", "우하엽에 결절")
    read = stage_text(given)
    assert read.text == "우하엽에 결절"
    back = read.as_given(Span(5, 7))
    assert given[back.start : back.end] == unicodedata.normalize("NFD", "결절")


def test_a_span_beyond_the_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[3, 9\)"):
        stage_text("nodule").as_given(Span(3, 9))


def test_a_zero_width_sign_keeps_its_place() -> None:
    assert stage_text("nod\u200bule").text == "nod\u200bule"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "text is empty"),
        (" \n\t\x07\u3000\ufeff", "text holds nothing but white space and control characters"),
        ("a\0b", "text holds NUL at character 1"),
        ("결절\udcff", "text is not UTF-8 at byte 6"),
        ("ab\ud83d", "text holds half of a surrogate pair at character 2"),
        ("x" * 11, "text has 11 characters; at most 10 are read"),
        (None, "text is null; a string is expected"),
        (5, "text is a int; a string is expected"),
        (["nodule"], "text is a list; a string is expected"),
    ],
)
def test_texts_that_are_refused(text: object, problem: str) -> None:
    assert text_problem(text, max_chars=10) == problem


@pytest.mark.parametrize("text", ["nodule", "결절", "?", "a\x07b", "x" * 10])
def test_texts_that_are_read(text: str) -> None:
    assert text_problem(text, max_chars=10) is None


def test_a_report_of_a_megabyte_is_refused_with_its_length() -> None:
    assert text_problem("nodule " * 150_000) == "text has 1050000 characters; at most 100000 are read"

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stage1_encoder.text import clean

MIXED = st.text(
    alphabet=st.one_of(
        st.sampled_from("aRUL 12.8mm\n\t\r,()-+#→×≥·●😀🫁\u00ad\u200b\u200d\u0301\ufe0f결절이없음각가ㅋ"),
        st.characters(),
    ),
    max_size=60,
)


@pytest.mark.parametrize(
    ("given_text", "cleaned"),
    [
        ("nodule\nin RUL", "nodule in RUL"),
        ("no effusion.\r\n\r\n  No mass.", "no effusion. No mass."),
        ("nodule●mass", "nodule mass"),
        ("1.2×0.8 cm", "1.2x0.8 cm"),
        ("GGO – RUL", "GGO - RUL"),
        ("RLL→LLL", "RLL>LLL"),
        ("conso\u00adlidation", "consolidation"),
        ("흉수😀없음", "흉수 없음"),
        ("nodule (+), 6 mm [#3-42]", "nodule (+), 6 mm [#3-42]"),
        ("  \n\t ", ""),
    ],
)
def test_cleaning_keeps_words_apart(given_text: str, cleaned: str) -> None:
    assert clean(given_text).text == cleaned


@given(MIXED)
@example("a\n\u0301b")
@example("a\ufe0f\u0301")
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = clean(text).text
    assert clean(once).text == once


@given(MIXED)
def test_every_cleaned_character_leads_back_to_its_characters(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned.text) == len(cleaned.starts) == len(cleaned.ends)
    end = 0
    for position, character in enumerate(cleaned.text):
        span = cleaned.given(position, position + 1)
        assert span.start >= end
        end = span.end
        if character.isalnum() and text[span.start] not in "×":
            assert text[span.start : span.end] == character


@given(MIXED)
def test_no_letter_or_digit_is_lost(text: str) -> None:
    kept = [character for character in clean(text.replace("×", " ")).text if character.isalnum()]
    assert kept == [character for character in text if character.isalnum()]


@given(
    st.lists(st.sampled_from(["nodule", "RUL", "결절", "12"]), min_size=2, max_size=6),
    st.sampled_from(["\n", "\r\n", "\u2028", " ● ", "•", "\x0b", "😀"]),
)
def test_words_are_never_joined(words: list[str], between: str) -> None:
    assert clean(between.join(words)).text == " ".join(words)

"""Windows of a long report cover all of it, fit, and keep neighbouring sentences together."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.contracts import Span
from stage2_relations.sentences import sentences
from stage2_relations.windows import report_windows

WORDS = st.lists(st.text("abc결절", min_size=1, max_size=30), min_size=1, max_size=60)


@settings(deadline=None)
@given(WORDS, st.integers(min_value=8, max_value=200), st.sampled_from([" ", ". ", ".\n"]))
def test_every_character_is_in_a_window_and_every_window_fits(words: list[str], limit: int, joint: str) -> None:
    text = joint.join(words)
    windows = report_windows(text, sentences(text), len, limit)
    covered = {i for window in windows for i in range(window.start, window.end)}
    assert all(i in covered for i, character in enumerate(text) if not character.isspace())
    assert all(window.end - window.start <= limit for window in windows)
    assert windows == sorted(windows)


def test_neighbouring_sentences_share_a_window() -> None:
    text = " ".join(f"Finding number {i} is there." for i in range(40))
    spans = sentences(text)
    windows = report_windows(text, spans, len, 120)
    assert len(windows) > 5
    for first, second in pairwise(spans):
        assert any(window.start <= first.start and second.end <= window.end for window in windows)


def test_long_sentence_is_cut_at_white_space_only() -> None:
    text = "word " * 100 + "end"
    windows = report_windows(text, [Span(0, len(text))], len, 60)
    assert all(text[window.start : window.end].split() == text[window.start : window.end].strip().split(" ") for window in windows)
    assert {word for window in windows for word in text[window.start : window.end].split()} == {"word", "end"}


def test_limit_that_takes_no_character_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        report_windows("ab", [Span(0, 2)], len, 1)

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Task
from stage1_encoder.marks import WindowCut, mark_matrix
from stage1_encoder.model import KeyFlagModel
from stage1_encoder.tokenizer import ReportTokenizer


@pytest.fixture
def cut(tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_task: Task) -> WindowCut:
    return WindowCut(tiny_model[1], tiny_task, window_tokens=24, overlap_tokens=6)


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("No pleural effusion. A nodule.", {"effusion": "pleural effusion", "nodule": "nodule"}),
        ("RUL의 결절이 있음.", {"nodule": "결절"}),
        ("Normal.", {}),
    ],
)
def test_the_tokens_of_a_mention_carry_its_key(cut: WindowCut, tiny_task: Task, text: str, marked: dict[str, str]) -> None:
    (window,) = cut.windows(text)
    tokens = cut.tokenizer.encode(text)
    for column, key in enumerate(tiny_task.keys):
        spans = [tokens.spans[position - 1] for position, mark in window.marks if mark == column]
        found = text[spans[0].start : spans[-1].end] if spans else None
        assert found == marked.get(key)


@given(st.lists(st.sampled_from(["a nodule", "no mass,", "effusion", "결절", "RUL", "x"]), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_windows_mark_what_the_whole_text_marks(
    tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_task: Task, words: list[str]
) -> None:
    text = " ".join(words)
    whole = WindowCut(tiny_model[1], tiny_task, window_tokens=1000, overlap_tokens=0).windows(text)[0]
    short = WindowCut(tiny_model[1], tiny_task, window_tokens=24, overlap_tokens=6).windows(text)
    seen = {(number * 16 + position, key) for number, window in enumerate(short) for position, key in window.marks}
    assert seen == set(whole.marks)


def test_a_mark_matrix_is_one_where_marked(cut: WindowCut) -> None:
    (window,) = cut.windows("No mass.")
    matrix = mark_matrix(window, 3)
    assert matrix.shape == (len(window.ids), 3)
    assert {(int(p), int(k)) for p, k in zip(*matrix.nonzero(), strict=True)} == set(window.marks)

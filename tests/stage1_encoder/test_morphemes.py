from __future__ import annotations

import kiwipiepy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1_encoder import morphemes as module
from stage1_encoder.morphemes import morphemes
from stage1_encoder.tokenizer import ReportTokenizer


@pytest.mark.parametrize(
    ("run", "split"),
    [
        ("결절이", ("결절", "이")),
        ("좌하엽에", ("좌", "하", "엽", "에")),
        ("없음", ("없", "음")),
        ("했습니다", ("했", "습니다")),  # 하 + 었 overlap in the text and stay one
        ("이", ("이",)),
        ("각결절", ("각결절",)),  # jamo: not for the analyser
    ],
)
def test_hangul_splits_into_morphemes(run: str, split: tuple[str, ...]) -> None:
    assert morphemes(run) == split


@given(st.text(alphabet=st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=12))
def test_morphemes_join_to_the_run(run: str) -> None:
    assert "".join(morphemes(run)) == run
    assert all(morphemes(run))


def test_offsets_that_do_not_tile_give_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gap:
        class Token:
            start, len = 1, 2

        def tokenize(self, text: str) -> list[Token]:
            return [self.Token()]

    monkeypatch.setattr(module, "_analyser", Gap)
    assert morphemes.__wrapped__("음영증가") == ("음영증가",)


def test_one_analyser_serves_the_process_and_only_hangul_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake 5: an analyser constructed for every call. And Kiwi tears Latin words before a period."""
    made: list[object] = []
    asked: list[str] = []
    real = module._analyser()

    class Counting:
        def __init__(self, **_: object) -> None:
            made.append(self)

        def tokenize(self, text: str) -> object:
            asked.append(text)
            return real.tokenize(text)

    monkeypatch.setattr(kiwipiepy, "Kiwi", Counting)
    module._analyser.cache_clear()
    module.morphemes.cache_clear()
    try:
        texts = ["RUL의 nodule이 pneumonia. 없음", "흉수 없음. No effusion.", "변화 없음", "No effusion. pneumonia."]
        tokenizer = ReportTokenizer.train(texts, vocabulary_size=300)
        for text in texts:
            tokenizer.encode(text)
        assert len(made) == 1
        assert asked
        assert all(module.SYLLABLES.fullmatch(run) for run in asked)
    finally:
        module._analyser.cache_clear()

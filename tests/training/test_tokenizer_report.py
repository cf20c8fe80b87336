"""The tokenizer report counts what it says, and morphemes are its one difference between ours and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_encoder.text import clean
from stage1_encoder.tokenizer import pieces
from training.settings import TokenizerSettings, read_settings
from training.tokenizer_report import Measured, figures, table, tokenizer_report, whole_runs, without_morphemes

LETTERS = Measured(256, lambda text: [ord(letter) for letter in text], lambda ids: "".join(map(chr, ids)))


def test_figures_are_what_counting_by_hand_gives() -> None:
    found = figures("letters", LETTERS, ["ab cd.", "결절 없음"])
    assert found.tokens_a_word == (6 + 5) / 4
    assert found.tokens_a_syllable == (2 + 2) / 4
    assert (found.lossless, found.n_texts, found.vocabulary_size) == (1.0, 2, 256)
    assert found.sentences_per_s > 0


def test_a_lossy_tokenizer_is_found_out() -> None:
    lower = Measured(256, lambda text: [ord(letter) for letter in text.lower()], lambda ids: "".join(map(chr, ids)))
    assert figures("lower", lower, ["Nodule", "nodule"]).lossless == 0.5


def test_texts_without_hangul_have_no_figure_for_it() -> None:
    found = figures("letters", LETTERS, ["nodule"])
    assert found.tokens_a_syllable != found.tokens_a_syllable
    assert " – " in table({"chest_ct": [found]})[-1]


@given(text=st.text(alphabet="ab 결절은없음1.", max_size=40))
@settings(deadline=None)
def test_whole_runs_join_to_the_text_and_part_no_run(text: str) -> None:
    cleaned = clean(text).text
    assert "".join(whole_runs(cleaned)) == "".join(pieces(cleaned))
    assert len(whole_runs(cleaned)) <= len(list(pieces(cleaned)))


def test_without_morphemes_a_word_is_one_piece_and_nothing_is_lost() -> None:
    tokenizer = without_morphemes(["결절이 관찰됨. nodule 3 mm"] * 3, vocabulary_size=400, min_frequency=2)
    assert len(tokenizer.encode("관찰됨")) == 1
    assert tokenizer.decode(tokenizer.encode("관찰됨. 다른 결절")) == "관찰됨. 다른 결절"


@pytest.mark.llm
def test_the_report_has_every_tokenizer_and_ours_loses_nothing(tiny_settings: dict[str, Path]) -> None:
    (rows,) = tokenizer_report(read_settings(tiny_settings["tokenizer"], TokenizerSettings)).values()
    assert [row.name for row in rows] == ["ours", "ours without morphemes", "MiniLM WordPiece", "SmolLM2 BPE"]
    assert [row.lossless for row in rows][:2] == [1.0, 1.0]
    assert rows[3].lossless == 1.0
    assert rows[2].lossless < 1

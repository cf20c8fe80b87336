from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1_encoder.text import clean
from stage1_encoder.tokenizer import ReportTokenizer, TokenizerError, pieces

TEXTS = [
    "1. A 6 mm nodule in the RUL (#3-42), no change.\n2. No pleural effusion, consolidation or nodule.",
    "좌하엽에 경화 소견. RUL의 nodule이 이전 CT와 비교하여 변화 없음.",
    "FINDINGS: Ground-glass opacity in both lower lobes. IMPRESSION: r/o pneumonia.",
    "GBM s/p op. 조영증강 병변의 크기 증가 → progression.",
    "[MASK] [PAD] consoldation, nodluar",
] * 3
REPORTS = st.text(
    alphabet=st.one_of(
        st.sampled_from("RULnodule 0123456789.,()/#-\n결절이없음각\u1112\u1161\u11ab😀é\u0301[MASK]"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=80,
)


@pytest.fixture(scope="module")
def tokenizer() -> ReportTokenizer:
    return ReportTokenizer.train(TEXTS, vocabulary_size=700)


@given(text=REPORTS)
def test_decoding_gives_the_cleaned_text_back(tokenizer: ReportTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == clean(text).text


@given(text=REPORTS)
def test_pieces_join_to_the_cleaned_text(text: str) -> None:
    cleaned = clean(text).text
    assert "".join(pieces(cleaned)) == (" " + cleaned if cleaned else "")


@given(text=REPORTS)
def test_spans_cover_every_letter_in_order(tokenizer: ReportTokenizer, text: str) -> None:
    encoded = tokenizer.encode(text)
    assert len(encoded.ids) == len(encoded.spans)
    covered = [False] * len(text)
    for before, after in zip(encoded.spans, encoded.spans[1:], strict=False):
        assert before.start <= after.start
    for span in encoded.spans:
        assert span.end <= len(text)
        for position in range(span.start, span.end):
            covered[position] = True
    assert all(covered[position] for position, character in enumerate(text) if character.isalnum())


def test_spans_lie_in_the_text_as_given(tokenizer: ReportTokenizer) -> None:
    text = "RUL의\n\n  nodule이 ● 없음."
    assert [text[span.start : span.end] for span in tokenizer.encode(text).spans] == ["RUL", "의", "nodule", "이", "없", "음", "."]


def test_a_word_has_the_same_token_at_the_start_and_inside(tokenizer: ReportTokenizer) -> None:
    assert tokenizer.encode("nodule").ids[0] == tokenizer.encode("no nodule").ids[-1]


def test_loaded_tokenizer_cuts_as_the_trained_one(tokenizer: ReportTokenizer, tmp_path: Path) -> None:
    """Mistake 4: morphemes set where they have no effect after loading. Their boundaries hold in training and in the file."""
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = ReportTokenizer.load(path)
    for text in [*TEXTS, "결절이 커졌으나 흉수는 없음", unicodedata.normalize("NFD", "흉수 없음")]:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.content_hash == tokenizer.content_hash
    # 이 is a morpheme of its own in training, so no learned token may span noun and particle.
    korean = ReportTokenizer.train(["결절이 보인다"] * 50, vocabulary_size=400)
    korean.save(path)
    text = "결절이"
    for made in (korean, ReportTokenizer.load(path)):
        assert [text[span.start : span.end] for span in made.encode(text).spans] == ["결절", "이"]
        assert not any(piece is not None and piece.strip() == "결절이" for piece in made.token_texts())


def test_text_that_spells_a_special_token_gets_ordinary_ones(tokenizer: ReportTokenizer) -> None:
    for text in ("[MASK]", "[SEP] nodule [CLS]", "a[PAD]b"):
        ids = tokenizer.encode(text).ids
        assert not set(ids) & tokenizer.special_ids
        assert tokenizer.decode(ids) == text


def test_training_twice_gives_the_same_file(tokenizer: ReportTokenizer) -> None:
    assert ReportTokenizer.train(TEXTS, vocabulary_size=700).to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation_version": 0}, "segmentation_version is 0"),
        ({"morphemes": "kiwi 0.1"}, "morphemes is 'kiwi 0.1'"),
        ({"format": "bert"}, "no tokenizer file of radtag"),
        ({"bpe": {}}, "'bpe' is damaged"),
    ],
)
def test_a_file_of_another_segmentation_is_refused(
    tokenizer: ReportTokenizer, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(tokenizer.to_json()), **change}), encoding="utf-8")
    with pytest.raises(TokenizerError, match=message):
        ReportTokenizer.load(path)


def test_a_cut_or_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: file does not exist; `radtag train tokenizer`"):
        ReportTokenizer.load(path)
    path.write_text('{"format": "radtag tok', encoding="utf-8")
    with pytest.raises(TokenizerError, match="cannot be read as JSON"):
        ReportTokenizer.load(path)


@given(length=st.integers(0, 200), window=st.integers(8, 40), data=st.data())
def test_windows_cover_all_tokens_with_the_overlap(
    tokenizer: ReportTokenizer, length: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, window - 3))
    ids = list(range(1000, 1000 + length))
    windows = tokenizer.windows(ids, window_tokens=window, overlap_tokens=overlap)
    assert all(w[0] == tokenizer.cls_id and w[-1] == tokenizer.sep_id and len(w) <= window for w in windows)
    joined = windows[0][1:-1]
    for later in windows[1:]:
        inner = later[1:-1]
        assert joined[len(joined) - overlap :] == inner[:overlap]
        assert len(inner) > overlap
        joined += inner[overlap:]
    assert joined == ids

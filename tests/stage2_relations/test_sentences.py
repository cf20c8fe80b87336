"""Sentence boundaries of mixed Korean/English reports."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_relations.sentences import SPACY_COMPONENT, sentences, spacy_sentences

# One row a phenomenon; "|" marks where a sentence ends and the next begins.
CASES = {
    "side abbreviations": "Small Rt. pleural effusion.|Lt. lung is clear.",
    "due to, rule out, status post": "consolidation d/t pneumonia, r/o TB, s/p op.|No effusion.",
    "latin abbreviations": "Several nodules, e.g. in RUL.|No mass.",
    "decimals": "1.2 cm nodule.|2.5 x 1.0 cm mass.",
    "image references": "nodule (#3-42).|no effusion (#2-1.5).",
    "dates with full stops": "2019.03.04. CT와 비교하여 변화 없음.|흉수 없음.",
    "cancer before a lower-case word": "lung ca. with metastases.|No effusion.",
    "cancer at the end": "lung ca.|No effusion.",
    "lower-case sentences": "no pleural effusion.|no pleural seeding.",
    "numbered items": "1. nodule in RUL.\n|2. no effusion.",
    "numbered items on one line": "1. nodule in RUL.|2. no effusion.|3. 정상.",
    "bullets": "- nodule RUL\n|- no effusion\n|* eff small",
    "conclusion line": "1. mass in RUL\n|-> lung cancer",
    "inline arrow stays": "mass, 17 -> 5 mm, much decreased.|No edema.",
    "korean endings with full stop": "결절이 있음.|흉수는 보이지 않습니다.|변화 없음.",
    "korean endings without full stop": "RUL에 결절 있음|흉수 없음|기흉 없음",
    "a korean ending with a particle stays": "흉수 없음을 확인함.",
    "missing space": "nodule seen.|No effusion.",
    "question": "TB?|Clinical correlation.",
    "grade": "WHO grade 2.|no recurrence.",
    "radiotherapy is no side": "microbleeds after RT.|not present elsewhere.",
    "heading": "FINDINGS:\n|The lungs are clear.\n\n|IMPRESSION: Normal.",
    "wrapped line": "There is a nodule in the posterior segment of the\nright upper lobe.|No effusion.",
    "numero": "no. 3 nodule in RUL.|No effusion.",
}


@pytest.mark.parametrize("marked", CASES.values(), ids=CASES.keys())
def test_sentence_ends_where_the_table_says(marked: str) -> None:
    text = marked.replace("|", " ")
    wanted = [part.strip() for part in marked.split("|")]
    assert [text[s.start : s.end] for s in sentences(text)] == wanted


@pytest.mark.parametrize("text", ["", " \n\t ", "\n\n"])
def test_blank_text_has_no_sentence(text: str) -> None:
    assert sentences(text) == []


PIECES = st.sampled_from(
    [
        "1. ",
        "2) ",
        "- ",
        "\n",
        "\r\n",
        " ",
        ".",
        "Rt. ",
        "ca. ",
        "no effusion",
        "결절",
        "없음",
        " 있음. ",
        "2019.03.04. ",
        "1.2 cm",
        "(#3-42)",
        "->",
        "é",
        "\u2028",
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=30).map("".join))
def test_spans_cover_every_character_but_white_space_exactly_once(text: str) -> None:
    spans = sentences(text)
    covered = [position for span in spans for position in range(span.start, span.end)]
    assert len(covered) == len(set(covered))
    assert {i for i, c in enumerate(text) if not c.isspace()} <= set(covered)
    assert all(text[s.start : s.end] == text[s.start : s.end].strip() for s in spans)
    assert spans == sorted(spans)


@pytest.mark.parametrize("marked", CASES.values(), ids=CASES.keys())
def test_spacy_component_finds_the_same_sentences(marked: str) -> None:
    text = marked.replace("|", " ")
    assert spacy_sentences(text) == sentences(text)


def test_component_can_be_added_by_name_to_any_pipeline() -> None:
    import spacy

    from stage2_relations.sentences import register_spacy_component

    register_spacy_component()
    pipeline = spacy.blank("ko", config={"nlp": {"tokenizer": {"@tokenizers": "spacy.Tokenizer.v1"}}})
    pipeline.add_pipe(SPACY_COMPONENT)
    assert [s.text.strip() for s in pipeline("Rt. 흉수 없음. 결절 있음.").sents] == ["Rt. 흉수 없음.", "결절 있음."]


def test_absent_spacy_model_is_named() -> None:
    with pytest.raises(OSError, match="no_such_model"):
        spacy_sentences("No effusion.", model="no_such_model")


def test_bullets_that_lost_their_line_breaks_begin_sentences() -> None:
    text = 'Heart is normal. " Millimetric nodule in the middle lobe " Emphysema in both lungs • 우상엽 결절 • Coronary stents'
    assert [text[span.start : span.end] for span in sentences(text)] == [
        "Heart is normal.",
        '" Millimetric nodule in the middle lobe',
        '" Emphysema in both lungs',
        "• 우상엽 결절",
        "• Coronary stents",
    ]


def test_quoted_words_stay_in_their_sentence() -> None:
    text = 'The so-called "tree-in-bud" sign and a "Halo" around it are seen.'
    assert len(sentences(text)) == 1


def test_a_line_of_a_hundred_thousand_characters_is_split_in_seconds() -> None:
    begin_s = time.process_time()
    assert len(sentences("Seen. " * 16_000)) == 16_000
    assert time.process_time() - begin_s < 10  # 0.2 s; 90 s when every stop looked at the whole line


def test_a_number_after_a_long_gap_is_still_an_item() -> None:
    text = "Nodule in RUL." + " " * 120 + "2. Mass in LLL."
    assert [text[span.start : span.end] for span in sentences(text)] == ["Nodule in RUL.", "2. Mass in LLL."]

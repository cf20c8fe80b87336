"""Which reports are negated, hedged, Korean, long: small tables of sentences that a radiologist can extend."""

from __future__ import annotations

import pytest

from configs.schema import load_task
from eval.gold import GoldReport, Labels
from eval.subsets import subsets, text_traits

TASK = load_task("chest_ct")


@pytest.mark.parametrize(
    ("text", "negated", "hedged"),
    [
        ("Nodule in the RUL.", False, False),
        ("No nodule. Consolidation in the RLL.", True, False),
        ("폐결절은 보이지 않음.", True, False),
        ("Consolidation in the RLL, probable pneumonia.", False, True),
        ("r/o mass in LLL", False, True),
        ("우상엽에 결절 의심됨.", False, True),
        ("Nodule in the RUL. Liver cyst, likely benign.", False, False),  # the hedge is of another sentence
        ("No suspicious nodule.", True, False),  # what is denied is not hedged
        ("Nodule (?) in the RUL", False, True),
    ],
)
def test_negated_and_hedged_reports(text: str, negated: bool, hedged: bool) -> None:
    found = text_traits(TASK, text)
    assert (found.negated, found.hedged) == (negated, hedged)


def test_groups_hold_each_report_once_and_those_without_text_only_by_style() -> None:
    texts = ["결절 없음.", "Nodule. " * 60, None]
    gold = [GoldReport(Labels(str(i), {}), text, style="A") for i, text in enumerate(texts)]
    found = subsets(gold, [None if text is None else text_traits(TASK, text) for text in texts])
    named = {(s.group, s.name): s.members for s in found}
    assert named["language", "with Korean"] == (0,)
    assert named["language", "without Korean"] == (1,)
    assert named["length", "up to 50 words"] == (0,)
    assert named["length", "51 to 150 words"] == (1,)
    assert named["house style", "A"] == (0, 1, 2)
    assert ("negated finding", "yes") in named


def test_decomposed_korean_is_read_as_korean() -> None:
    import unicodedata

    assert text_traits(TASK, unicodedata.normalize("NFD", "결절 없음.")).hangul

"""Another order of findings and sentences: labels, numbers, sections and the words of every piece hold; references stop it."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.mentions import entity_mentions, value_mentions
from configs.schema import load_task
from training.augment import LabelledText
from training.reorder import blocks, change_order, shuffled

CHEST, BRAIN = load_task("chest_ct"), load_task("brain_mri")
NUMBERED = LabelledText(
    "Chest CT, f/u.\n1. 8 mm nodule in the RUL (#3-42).\n2) No pleural effusion.\n"
    "3. Septal thickening in LLL,\n   mild.\n\nRec) CT in 6 mo.",
    {"nodule": ("rul",), "interstitial_thickening": ("lll",)},
)
BULLETS = LabelledText("- 결절, 우상엽\n- 흉수 없음\n- 좌하엽 무기폐", {"nodule": ("rul",), "atelectasis": ("lll",)})
PROSE = LabelledText(
    "FINDINGS:\nContrast was given. "
    "A nodule lies in the right upper lobe. Consolidation is present in the left lower lobe. No effusion.\n"
    "IMPRESSION:\nStudy without old images. Nodule in the right upper lobe. Consolidation in the left lower lobe.",
    {"nodule": ("rul",), "consolidation": ("lll",)},
)
ORGANS = LabelledText(
    "LUNGS: Nodule in the RUL.\nPLEURA: No effusion.\nHEART: Normal size.\nIMPRESSION: Nodule in the RUL.", {"nodule": ("rul",)}
)
MIXED = [NUMBERED, BULLETS, PROSE, ORGANS]


def _changed(report: LabelledText) -> list[LabelledText]:
    found = [change_order(CHEST, report, random.Random(seed)) for seed in range(12)]
    return [item for item in found if item is not None]


def _mentions(text: str) -> Counter[tuple[str, str]]:
    found = [*entity_mentions(CHEST, text), *value_mentions(CHEST, text)]
    return Counter((mention.name, text[mention.span.start : mention.span.end]) for mention in found)


@pytest.mark.parametrize("report", MIXED)
def test_labels_words_and_mentions_stay(report: LabelledText) -> None:
    changed = _changed(report)
    assert changed
    for item in changed:
        assert item.labels == report.labels
        assert item.text != report.text
        assert Counter(item.text.split()) == Counter(report.text.split())
        assert _mentions(item.text) == _mentions(report.text)


@pytest.mark.parametrize("report", MIXED)
def test_a_mention_stays_among_the_words_of_its_own_piece(report: LabelledText) -> None:
    bodies = Counter(report.text[piece.start : piece.end] for block in blocks(report.text) for piece in block.pieces)
    for item in _changed(report):
        assert bodies == Counter(item.text[piece.start : piece.end] for block in blocks(item.text) for piece in block.pieces)


def test_numbers_keep_their_order_and_lines_set_in_go_with_their_finding() -> None:
    for item in _changed(NUMBERED):
        assert re.findall(r"^(\d)([.)])", item.text, re.MULTILINE) == [("1", "."), ("2", ")"), ("3", ".")]
        assert "Septal thickening in LLL,\n   mild." in item.text
        assert item.text.startswith("Chest CT, f/u.\n1. ")
        assert item.text.endswith("\n\nRec) CT in 6 mo.")


def test_sections_stay_and_sentences_never_leave_theirs() -> None:
    before = PROSE.text.split("IMPRESSION:")
    for item in _changed(PROSE):
        after = item.text.split("IMPRESSION:")
        assert [Counter(part.split()) for part in after] == [Counter(part.split()) for part in before]
        assert after[0].startswith("FINDINGS:\nContrast was given.")
        assert after[1].startswith("\nStudy without old images.")


def test_organ_lines_move_with_their_headings() -> None:
    for item in _changed(ORGANS):
        for line in ("LUNGS: Nodule in the RUL.", "PLEURA: No effusion.", "HEART: Normal size."):
            assert line in item.text.split("\n")[:3]
        assert item.text.endswith("\nIMPRESSION: Nodule in the RUL.")


@pytest.mark.parametrize(
    "text",
    [
        "1. 8 mm nodule in RUL.\n2. These were seen in 2020.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. Consolidation in the same lobe.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. It is calcified.\n3. No effusion.",
        "1. 8 mm nodule in RUL, mass in LLL.\n2. The former is new.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. Also GGO in LLL.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. LUL: ditto.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. No other nodule.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. The nodule is calcified.\n3. No effusion.",
        "1. 8 mm nodule in RUL.\n2. GGO in LLL, see finding 1.\n3. No effusion.",
        "1. 우상엽 결절.\n2. 반대측에 흉수.\n3. 무기폐 없음.",
        "1. 우상엽 결절.\n2. 이 결절은 석회화됨.\n3. 흉수 없음.",
        "1. 우상엽 결절.\n2. 그 아래 무기폐.\n3. 흉수 없음.",
        "1. 우상엽 결절.\n2. 동일 부위에 간유리음영.\n3. 흉수 없음.",
        "1. 우상엽 결절.\n2. 그 외 결절 없음.\n3. 흉수 없음.",
        "1. 8 mm nodule in RUL.\n2. Peripheral GGO.\n3. No effusion.",  # a place from the line before
        "1. 8 mm nodule.\n2. Location: RUL.\n3. No effusion.",  # a place for the line before
        "1. 8 mm nodule in RUL.\ncontinued without being set in\n2. No effusion.",
        "1. 8 mm nodule in RUL.",
        "8 mm nodule in RUL. No effusion",
    ],
)
def test_what_refers_to_its_neighbour_stays(text: str) -> None:
    labels = {"nodule": ("rul",), "ggo": ("rul",)}
    assert all(change_order(CHEST, LabelledText(text, labels), random.Random(seed)) is None for seed in range(6))


def test_a_course_without_its_tumour_stays_behind_it() -> None:
    report = LabelledText("1. Left frontal glioma.\n2. Enhancement has increased.\n3. No infarct.", {"glioma": ("progression",)})
    assert all(change_order(BRAIN, report, random.Random(seed)) is None for seed in range(6))


def test_a_course_beside_its_tumour_may_move() -> None:
    report = LabelledText(
        "1. Left frontal glioma has grown.\n2. Old infarct.", {"glioma": ("progression",), "stroke_infarction": ()}
    )
    changed = [change_order(BRAIN, report, random.Random(seed)) for seed in range(6)]
    assert LabelledText("1. Old infarct.\n2. Left frontal glioma has grown.", report.labels) in changed


@settings(deadline=None)
@given(text=st.text(alphabet="ab.1 \n-)가:", max_size=80), seed=st.integers(0, 99))
def test_any_text_keeps_its_characters(text: str, seed: int) -> None:
    found = blocks(text)
    pieces = sorted(piece for block in found for piece in block.pieces)
    assert all(before.end <= after.start for before, after in itertools.pairwise(pieces))
    assert Counter(shuffled(text, found, random.Random(seed))) == Counter(text)

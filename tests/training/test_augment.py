"""Augmentation: case by case, the new labels hold for the new text."""

from __future__ import annotations

import random

import pytest

from configs.mentions import entity_mentions, value_mentions
from configs.schema import load_task
from training.augment import (
    LabelledText,
    SurfaceForms,
    add_statements,
    add_typos,
    change_case,
    exchange_entities,
    exchange_values,
    join_lines,
    join_reports,
)

CHEST = load_task("chest_ct")
SEEN = [
    LabelledText("Nodule in the RUL. Consolidation in the LLL. GGO in the LUL, atelectasis in the RML.", {}),
    LabelledText("A mass in RLL, fibrosis in the lingula. Bronchiectasis. Bronchial wall thickening. Septal thickening.", {}),
    LabelledText("Pleural effusion and pleural thickening.", {}),
    LabelledText("좌하엽에 경화. 우상엽 결절. 흉수. 무기폐. 섬유화. 우하엽, 좌상엽 종괴.", {}),
]
FORMS = SurfaceForms.of(CHEST, SEEN)
NODULE = LabelledText(
    "8 mm nodule in the RUL. No consolidation. Septal thickening in the LLL.",
    {"nodule": ("rul",), "interstitial_thickening": ("lll",)},
)


@pytest.mark.parametrize("seed", range(40))
def test_exchanged_entities_keep_place_negation_and_value(seed: int) -> None:
    changed = exchange_entities(CHEST, NODULE, FORMS, random.Random(seed))
    if changed is None:
        return
    first, negated, last = [mention.name for mention in entity_mentions(CHEST, changed.text)]
    assert changed.labels == {first: ("rul",), last: ("lll",)}
    assert negated not in changed.labels


def test_exchange_of_entities_does_happen() -> None:
    assert any(exchange_entities(CHEST, NODULE, FORMS, random.Random(seed)) for seed in range(10))


def test_a_pleural_lesion_never_changes_places_with_a_lung_lesion() -> None:
    report = LabelledText("Pleural effusion. Nodule in the RUL.", {"pleural_effusion": ("pleural",), "nodule": ("rul",)})
    for seed in range(40):
        changed = exchange_entities(CHEST, report, FORMS, random.Random(seed))
        if changed is not None:
            assert any(key.startswith("pleural_") and values == ("pleural",) for key, values in changed.labels.items())


@pytest.mark.parametrize("seed", range(40))
def test_exchanged_values_are_the_ones_the_new_text_mentions(seed: int) -> None:
    changed = exchange_values(CHEST, NODULE, FORMS, random.Random(seed))
    if changed is None:
        return
    where = [mention.name for mention in value_mentions(CHEST, changed.text)]
    assert changed.labels == {"nodule": (where[0],), "interstitial_thickening": (where[1],)}


@pytest.mark.parametrize(
    "text",
    [
        "Nodule in the RUL. Right hilar nodes.",  # a side outside the mentions would contradict the new lobe
        "Nodule in both lungs.",  # one phrase, two values
        "Nodule in an unnamed place.",
    ],
)
def test_values_are_not_exchanged_where_it_could_lie(text: str) -> None:
    labels = {"nodule": tuple(sorted({mention.name for mention in value_mentions(CHEST, text)}))}
    assert all(exchange_values(CHEST, LabelledText(text, labels), FORMS, random.Random(seed)) is None for seed in range(10))


def test_a_labelled_key_that_no_keyword_finds_stops_the_exchange() -> None:
    report = LabelledText("A roundish thing in the RUL, no consolidation.", {"nodule": ("rul",)})
    assert exchange_entities(CHEST, report, FORMS, random.Random(1)) is None


@pytest.mark.parametrize("seed", range(30))
def test_added_statements_speak_only_of_keys_the_report_does_not_mention(seed: int) -> None:
    changed = add_statements(CHEST, NODULE, FORMS, random.Random(seed))
    assert changed is not None
    assert changed.labels == NODULE.labels
    before = {mention.name for mention in entity_mentions(CHEST, NODULE.text)}
    added = {mention.name for mention in entity_mentions(CHEST, changed.text)} - before
    assert added
    assert not added & before


def test_korean_mentions_are_replaced_by_korean_words() -> None:
    report = LabelledText("좌하엽에 경화 소견. 결절 없음.", {"consolidation": ("lll",)})
    changed = [exchange_entities(CHEST, report, FORMS, random.Random(seed)) for seed in range(20)]
    assert any(changed)
    assert all(item is None or item.text.isascii() is False for item in changed)


def test_typos_case_and_joined_lines_leave_the_labels() -> None:
    rng = random.Random(3)
    for changed in (add_typos(NODULE, rng, share_of_words=1.0), change_case(NODULE, rng), join_lines(NODULE)):
        assert changed.labels == NODULE.labels
    assert add_typos(NODULE, rng, share_of_words=1.0).text != NODULE.text
    assert "RUL" in add_typos(NODULE, rng, share_of_words=1.0).text


def test_joined_reports_state_what_either_states_and_never_mix_one_key() -> None:
    other = LabelledText("GGO in the LUL.", {"ggo": ("lul",)})
    joined = join_reports(NODULE, other)
    assert joined is not None
    assert joined.labels == {**NODULE.labels, "ggo": ("lul",)}
    assert join_reports(NODULE, LabelledText("Nodule, LUL.", {"nodule": ("lul",)})) is None

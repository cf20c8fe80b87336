"""Which words of a report are mentions, as sentences a radiologist can read and extend.

`[nodule|nodule]` marks a mention and its key; `[GGN|ggo nodule]` one with two keys. A sentence's marks are all the mentions it has.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.contracts import Span
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Task, load_task

CHEST_LESIONS = [
    "small [pleural effusion|pleural_effusion] on the right",
    "[hydrothorax|pleural_effusion], large",
    "[fluid collection|pleural_effusion] in Rt. pleural space",
    "우측에 소량의 [흉수|pleural_effusion]가 있음",
    "[흉막 삼출|pleural_effusion] 동반",
    "patchy [ground-glass opacities|ggo]",
    "[GGO|ggo]가 새로 보임",
    "[간유리음영|ggo]이 관찰됨",
    "8 mm pure [GGN|ggo nodule]",
    "a [ground glass|ggo] [nodule|nodule]",
    "air-space [consolidation|consolidation] with air bronchogram",
    "[consoldation|consolidation] again",
    "[경화|consolidation] 소견",
    "[폐경화|consolidation]가 있음",
    "[nodule|nodule]이 보임",
    "two [nodluar lesions|nodule]",
    "numerous [micronodules|nodule]",
    "[tree-in-bud|nodule] pattern",
    "다발성 [결절|nodule]들",
    "a 4 cm [mass|mass] is seen",
    "[mass-like lesion|mass]",
    "4 cm 크기의 [종괴|mass]",
    "passive [atelectasis|atelectasis]",
    "[atelctasis|atelectasis]는 남아 있음",
    "complete [collapse|atelectasis]",
    "띠 모양 [무기폐|atelectasis]",
    "traction [bronchiectasis|bronchiectasis]",
    "[bronchietasis|bronchiectasis] mild",
    "[기관지확장증|bronchiectasis] 동반",
    "[fibrotic|fibrosis] change",
    "TB [sequelae|fibrosis]",
    "linear [scar|fibrosis]",
    "[섬유화|fibrosis]가 있음",
    "[peribronchial cuffing|bronchial_wall_thickening]",
    "[bronchial wall thickening|bronchial_wall_thickening]",
    "[bronchial walls are thickened|bronchial_wall_thickening]",
    "[기관지벽 비후|bronchial_wall_thickening] 관찰됨",
    "[pleural thickening|pleural_thickening], calcified",
    "nodular [pleural thickening|pleural_thickening]",
    "[pleural effusion|pleural_effusion] or [thickening|pleural_thickening]",
    "[흉막 비후|pleural_thickening]가 동반됨",
    "[interlobular septal thickening|interstitial_thickening]",
    "nodular [septal thickening|interstitial_thickening]",
    "[reticular thickening|interstitial_thickening]",
    "[septl thickning|interstitial_thickening]",
    "[간질 비후|interstitial_thickening] 있음",
    "[소엽간격막 비후|interstitial_thickening]가 보임",
    # run together by a list or a contrast
    "[pleural or pericardial effusion|pleural_effusion]",
    "progressive massive [fibrosis|fibrosis] with a conglomerate [mass|mass]",
    "nodular [consolidation|consolidation]",
]

CHEST_TRAPS = [
    "8 mm nodule, Lt. thyroid, no change",
    "thyroid nodule",
    "Rt. adrenal nodule, stable",
    "low density nodules in liver S5/8",
    "a 6 cm mass arising from the left kidney",
    "갑상선 좌엽에 1.2 cm 저음영 nodule이 보임",
    "간 S6의 저음영 결절",
    "small pericardial effusion",
    "심낭 삼출",
    "knee joint effusion",
    "mass effect on the trachea",
    "nodular goitre",
    "cystic fibrosis",
    "compression fracture with vertebral collapse",
    "esophageal wall thickening",
    "동맥경화",
    "간경화",
    "rotator cuff",
    "honeycombing, UIP pattern",
    "volume loss",
    "emphysema",
]

CHEST_LOCATIONS = [
    "[right lung|right_lung]",
    "[Lt. lung|left_lung], clear",
    "[both lungs|right_lung left_lung]",
    "[bilateral lungs|right_lung left_lung]",
    "[양측 폐|right_lung left_lung]에",
    "[양폐|right_lung left_lung]의",
    "[우측 폐|right_lung]와 [좌폐|left_lung]",
    "[lingula|left_lingula]",
    "[LUL lingular segment|left_lingula]",
    "[LB4|left_lingula]",
    "[설상엽|left_lingula]에",
    "[좌상엽 설상구역|left_lingula]",
    "[BLL|bll], dependent",
    "[both lower lobes|bll]",
    "[bilateral lower lobes|bll]",
    "[bibasal|bll] change",
    "[both lung bases|bll]",
    "[양측 하엽|bll]에",
    "[양하엽|bll]",
    "[BUL|bul]",
    "[both upper lobes|bul]",
    "[biapical|bul] scar",
    "[양측 상엽|bul]의",
    "[RUL|rul]의",
    "[right upper lobe|rul]",
    "[Rt. apex|rul]",
    "[RB3|rul]",
    "[right lung upper lobe|rul]",
    "On the right, a lesion in the [upper lobe|rul]",
    "[우상엽|rul]에",
    "[RML|rml]과",
    "[right middle lobe|rml]",
    "[우중엽|rml]",
    "[RLL|rll] superior seg",
    "[right lower lobe|rll]",
    "[right base|rll]",
    "superior segment of [RLL|rll]",
    "[RB6|rll] and [LB10|lll]",
    "[우하엽|rll]의",
    "[LUL|lul] apicoposterior seg",
    "[left upper lobe|lul]",
    "[left apex|lul]",
    "[LB1+2|lul]",
    "[좌상엽|lul]",
    "[LLL|lll]",
    "[L lower lobe|lll]",
    "[left lung base|lll]",
    "[lower lobe of the left lung|lll]",
    "[좌하엽|lll]에",
    "[pleural|pleural] nodule",
    "[pleural|pleural] mass along the chest wall",
    "[흉막|pleural]의 결절",
    # several at once
    "[right upper and middle lobes|rul rml]",
    "[right and left lower lobes|rll lll]",
    "[both upper and lower lobes|bul bll]",
    "[left upper lobe|lul] and [lingula|left_lingula]",
    "[우측 상엽과 하엽|rul rll]",
]

NO_LOCATION = [
    "right pleural effusion",
    "right upper paratracheal LN",
    "right hilum",
    "subpleural",
    "left upper quadrant",
    "양측 폐문 림프절",
]

BRAIN_DISEASES = [
    "[glioblastoma|glioma], s/p op",
    "recurrent [GBM|glioma]",
    "[astrocytoma|glioma]의",
    "[교모세포종|glioma] 수술 후",
    "[PCNSL|lymphoma]",
    "r/o [lymhoma|lymphoma]",
    "[림프종|lymphoma] 의심",
    "multiple [metastases|metastasis]",
    "brain [mets|metastasis]",
    "[metastsis|metastasis]로 생각됨",
    "뇌[전이|metastasis]",
    "[meningioma|non_malignant_tumor]",
    "vestibular [schwannoma|non_malignant_tumor]",
    "[menigioma|non_malignant_tumor]",
    "[수막종|non_malignant_tumor] 있음",
    "active [demyelination|demyelinating]",
    "[multiple sclerosis|demyelinating]",
    "[탈수초|demyelinating] 의심",
    "[abcess|infection_inflammation]",
    "herpes [encephalitis|infection_inflammation]",
    "뇌[농양|infection_inflammation]",
    "acute [hemorrhage|hemorrhage_vascular]",
    "[haemorrhagic|hemorrhage_vascular] change",
    "[hemorhage|hemorrhage_vascular]",
    "[AVM|hemorrhage_vascular]과",
    "old [blood products|hemorrhage_vascular]",
    "뇌[출혈|hemorrhage_vascular]",
    "ICA [anuerysm|hemorrhage_vascular]",
    "old [infract|stroke_infarction]",
    "[lacunes|stroke_infarction] in BG",
    "급성 [뇌경색|stroke_infarction]",
]

BRAIN_TRAPS = [
    "lung metastasis",
    "폐와 뼈 전이로 항암 중",
    "metastatic lymph node",
    "mass effect",
    "maxillary sinusitis",
    "상악동염",
    "small vessel ischemic change",
    "black blood imaging",
    "contrast injection",
    "cerebral blood volume",
    "TE 80 ms",
    "LUL adenoca.",
    "vs 2021-07-29",
    "bone metastasis",
]

EPISODES = [
    "[increased|progression] in size",
    "[larger|progression] than before",
    "a [new|progression] lesion",
    "[recurrnt|progression] tumor",
    "크기 [증가|progression]",
    "더 [커졌|progression]음",
    "[새로|progression] 생긴 병변",
    "[stable|stable]",
    "[unchnaged|stable]",
    "[no interval change|stable]",
    "[no evidence of recurrence|stable]",
    "[not significantly changed|stable]",
    "이전과 [변화 없|stable]음",
    "크기 [비슷|stable]함",
    "[smaller|improvement]",
    "[decresed|improvement]",
    "[resolved|improvement]",
    "[no longer|improvement] seen",
    "크기 [감소|improvement]",
    "많이 [작아|improvement]짐",
    "[소실|improvement]됨",
]

NO_EPISODE = ["staple line", "less likely abscess", "progressive multifocal leukoencephalopathy", "mother deceased"]

MARK = re.compile(r"\[([^|\]]+)\|([a-z_ ]+)\]")


def marked(sentence: str) -> tuple[str, list[Mention]]:
    text, mentions, end = "", [], 0
    for match in MARK.finditer(sentence):
        text += sentence[end : match.start()]
        span = Span(len(text), len(text) + len(match[1]))
        text += match[1]
        end = match.end()
        mentions.extend(Mention(name, span) for name in sorted(match[2].split()))
    return text + sentence[end:], mentions


@pytest.fixture(scope="module")
def chest() -> Task:
    return load_task("chest_ct")


@pytest.fixture(scope="module")
def brain() -> Task:
    return load_task("brain_mri")


@pytest.mark.parametrize("sentence", CHEST_LESIONS)
def test_chest_lesions_are_mentioned_where_marked_and_nowhere_else(chest: Task, sentence: str) -> None:
    text, expected = marked(sentence)
    assert entity_mentions(chest, text) == expected


@pytest.mark.parametrize("text", CHEST_TRAPS)
def test_what_only_looks_like_a_chest_lesion_is_no_mention(chest: Task, text: str) -> None:
    assert entity_mentions(chest, text) == []


@pytest.mark.parametrize("sentence", CHEST_LOCATIONS)
def test_chest_locations_are_mentioned_where_marked_and_nowhere_else(chest: Task, sentence: str) -> None:
    text, expected = marked(sentence)
    assert value_mentions(chest, text) == expected


@pytest.mark.parametrize("text", NO_LOCATION)
def test_sides_and_neighbours_are_no_location(chest: Task, text: str) -> None:
    assert value_mentions(chest, text) == []


@pytest.mark.parametrize("sentence", BRAIN_DISEASES)
def test_brain_diseases_are_mentioned_where_marked_and_nowhere_else(brain: Task, sentence: str) -> None:
    text, expected = marked(sentence)
    assert entity_mentions(brain, text) == expected


@pytest.mark.parametrize("text", BRAIN_TRAPS)
def test_what_only_looks_like_a_brain_disease_is_no_mention(brain: Task, text: str) -> None:
    assert entity_mentions(brain, text) == []


@pytest.mark.parametrize("sentence", EPISODES)
def test_episodes_are_mentioned_where_marked_and_nowhere_else(brain: Task, sentence: str) -> None:
    text, expected = marked(sentence)
    assert value_mentions(brain, text) == expected


@pytest.mark.parametrize("text", NO_EPISODE)
def test_other_uses_of_comparing_words_are_no_episode(brain: Task, text: str) -> None:
    assert value_mentions(brain, text) == []


def _languages(sentences: list[str]) -> dict[str, set[str]]:
    seen: dict[str, set[str]] = {}
    for sentence in sentences:
        for match in MARK.finditer(sentence):
            for name in match[2].split():
                seen.setdefault(name, set()).add("ko" if re.search("[가-힣]", match[1]) else "en")
    return seen


def test_every_key_and_value_has_an_english_and_a_korean_sentence(chest: Task, brain: Task) -> None:
    seen = _languages([*CHEST_LESIONS, *CHEST_LOCATIONS, *BRAIN_DISEASES, *EPISODES])
    for name in [*chest.keys, *chest.values, *brain.keys, *brain.values]:
        assert seen.get(name) == {"en", "ko"}, name


@pytest.mark.parametrize("name", ["chest_ct", "brain_mri"])
def test_worked_examples_mention_what_they_answer(name: str) -> None:
    task = load_task(name)
    for step in task.steps:
        for example in step.prompt.examples:
            entities = {mention.name for mention in entity_mentions(task, example.report)}
            values = {mention.name for mention in value_mentions(task, example.report)}
            for subject, answered in example.answer.items():
                assert entities & set(task.groups.get(subject, (subject,))), (step.name, subject)
                for value in answered or ():
                    implied = subject in task.entities and value in task.entities[subject].implied
                    assert implied or value in values, (step.name, subject, value)


WORDS = st.sampled_from(
    [
        "GGN",
        "nodule",
        "RUL의",
        "both lungs",
        "thyroid",
        "흉수",
        "양측 하엽",
        "no",
        "pleural",
        "thickening",
        "effusion",
        "\n",
        ", ",
        " ",
        "LUL lingular",
        "경화",
    ]
)


CHEST = load_task("chest_ct")


@given(st.lists(WORDS, max_size=25).map("".join))
def test_mentions_are_ordered_spans_of_the_text_and_never_inside_one_another(text: str) -> None:
    for found in (entity_mentions(CHEST, text), value_mentions(CHEST, text)):
        assert found == sorted(found, key=lambda mention: (mention.span, mention.name))
        for mention in found:
            assert mention.span.end <= len(text)
            assert text[mention.span.start : mention.span.end].strip()
            for other in found:
                inside = other.span.start <= mention.span.start and mention.span.end <= other.span.end
                assert not inside or mention.span == other.span

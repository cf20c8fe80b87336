"""What a report asserts of its mentions.

Rows are marked-up sentences: [present], !negated!, ~resolved~, {historical}, <elsewhere>.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Task, load_task
from stage2_relations.assertion import Assertion, read_mentions

MARKS: dict[str, Assertion] = {"[]": "present", "!!": "negated", "~~": "resolved", "{}": "historical", "<>": "elsewhere"}
MARKED = re.compile(r"\[([^\]]+)\]|!([^!]+)!|~([^~]+)~|\{([^}]+)\}|<([^>]+)>")

CHEST = {
    "no": "no !nodule!.",
    "no evidence of": "There is no evidence of !consolidation!.",
    "without": "[mass] without !atelectasis!.",
    "list with or": "No !effusion!, !consolidation! or !nodule!.",
    "list without or": "no !nodule!, !consolidation!, !GGO!.",
    "list with a location at its end": "no !nodule!, !consolidation!, or !GGO! in either lung.",
    "neither nor": "neither !nodule! nor !mass! is seen.",
    "free of": "The remaining lung is free of !nodules!.",
    "negative for": "negative for !consolidation!.",
    "absence of": "absence of !bronchiectasis!.",
    "non": "Non-!fibrotic! hypersensitivity pneumonitis.",
    "denied": "denies any !effusion!.",
    "new finding ends the list": "no !effusion!, mild [atelectasis] in RLL.",
    "measure ends the list": "no !effusion!, 8 mm [nodule] in RUL.",
    "location ends a list without or": "no !effusion!, [consolidation] in RUL.",
    "but ends the scope": "no !nodule! but a [mass] in RLL.",
    "however ends the scope": "No !nodule!; however, there is [consolidation] in the RLL.",
    "semicolon ends the scope": "no !nodule!; [consolidation] in LLL.",
    "run-on line": "no !eff! no !cons! small [nodule] rul 4mm",
    "adjacent finding with its own place": "no !eff! no !cons! [mass] lll 4cm",
    "presupposed noun": "no !consolidation! distal to the [mass].",
    "not seen": "!Nodule! is not seen.",
    "not seen, list": "!Effusion!, !consolidation! or !nodule! was not observed.",
    "no longer": "RUL ~nodule~ (prev. 6 mm) is no longer visible.",
    "marks": "[nodule] in RUL, !effusion! (-), [atelectasis] (+)",
    "mark at the word": "!effusion!(-)",
    "bare minus": "!consolidation! -",
    "list before a mark": "!nodule!, LN enlargement (-)",
    "mark leaves a located finding": "8 mm [nodule] in RUL, LN enlargement (-)",
    "colon none": "- !pleural effusion!: none",
    "trailing no": "!bronchiectasis! no",
    "none on the other side": "Small right [effusion], none on the left.",
    "hedged": "r/o [consolidation], probable [nodule], suspicious for [mass].",
    "cannot exclude": "[consolidation] cannot be excluded.",
    "not excluded": "[nodule] is not excluded.",
    "no change of": "no change of [nodule] in RUL.",
    "no significant interval change": "No significant interval change of the [nodule].",
    "no definite change": "[nodule] in RUL, no definite change.",
    "no increase": "no increase of the [mass].",
    "not only": "not only [nodule] but also [mass].",
    "without change": "[consolidation] without change.",
    "no change is not a new finding's denial": "No !ground-glass change! in the lungs.",
    "resolved": "previously noted ~effusion~ has resolved.",
    "nearly resolved": "[consolidation] nearly resolved.",
    "disappeared with a comma": "LLL ~nodule~, 6.5 mm in previous study - disappeared.",
    "disappeared first": "3. disappeared obstructive ~atelectasis~ in lingula.",
    "resolution of": "Interval resolution of ~consolidation~.",
    "resolved, then a residue": "RLL ~consolidation~: cleared, residual [fibrotic] band only.",
    "rest on one side": "~tree in bud~ rml gone, new [effusion] small",
    "surgery for": "s/p LUL lobectomy d/t 2.4 cm {nodule} (2017)\n- no !consolidation!",
    "history of": "history of {mass}. Now [nodule] in RUL.",
    "indication": "INDICATION: {nodule} on radiograph.\nFINDINGS: No !nodule!. [Atelectasis] in LLL.",
    "clinical information": "C.I.: {consolidation} f/u\n1. [nodule] in RUL",
    "comparison": "COMPARISON: CT with {nodule}.\n\nFINDINGS: No !effusion!.",
    "history is all there is": "HISTORY: [nodule] in RUL.",
    "question in the first line": "CXR {nodule}, r/o\nChest CT\n1. no !nodule!.",
    "organ after": "9 mm <nodule>, exophytic, in spleen; [nodule] in RUL.",
    "heading of another organ": "Upper abdomen: 12 mm low density <nodule>.",
    "ko none": "!흉수! 없음.",
    "ko none, polite": "!흉수!는 없습니다.",
    "ko list": "!흉수!, !무기폐! 없음.",
    "ko list with or": "양측 폐에 !결절!이나 !종괴! 없음.",
    "ko list with a place": "양측 폐에 !결절!, !종괴! 없음.",
    "ko not seen": "!결절!은 보이지 않음.",
    "ko not observed": "!경화!는 관찰되지 않습니다.",
    "ko not identified": "!종괴!는 확인되지 않음.",
    "ko not distinct": "!흉수!는 뚜렷하지 않음.",
    "ko does not show, colloquial": "!흉수! 안 보임.",
    "ko suggests nothing": "!폐경화!를 시사하는 소견 없음.",
    "ko is not": "!경화!는 아님.",
    "ko dismissed": "!경화!로 보기는 어려움.",
    "ko excluded": "!결절!은 배제됨.",
    "ko gone": "RUL의 ~결절~은 소실됨.",
    "ko improved away": "~경화~는 호전되어 보이지 않음.",
    "ko before and now": "LUL에 있던 4 mm ~nodule~은 현재 보이지 않음.",
    "ko no change": "[결절]은 변화 없음.",
    "ko no change, list": "좌하엽에 4 mm [결절], 변화 없음.",
    "ko cannot exclude": "[종괴]를 배제할 수 없음.",
    "ko may not be": "[종괴]가 아닐 가능성 있음.",
    "ko clause end": "RUL에 [결절]이 있으며 !흉수!는 없음.",
    "ko no change, then none": "Lt. [pleural thickening]은 변화 없고 !pleural effusion!은 없음.",
    "ko except": "RUL의 [nodule] 외에 !mass! 없음.",
    "ko without": "!흉수! 없이 [무기폐]만 있음.",
    "ko noun inside": "[종괴] 내에 석회화 없음.",
    "ko latin noun with particle": "!atelectasis!는 없음.",
    "ko other side": "좌측 [흉수]는 없고 우측에 소량.",
    "ko history": "{결절}의 과거력 있음.\n[무기폐] 있음.",
}

BRAIN = {
    "dismissed, not the one before": "1. [meningioma], dural !metastasis! not considered",
    "less likely stays": "[glioblastoma]; [metastasis] is less likely.",
    "rather than": "[abscess] rather than !metastasis!.",
    "unlike": "!glioma!와 달리 급성임. [뇌염] 의심.",
    "staging question": "폐암, brain {metastasis} work-up\n1. !전이! 없음.",
    "family": "mother died of {glioblastoma}.\n1. no !infarct!.",
    "not suggestive of": "FLAIR foci, not suggestive of !demyelination!.",
    "nothing to suggest": "No susceptibility change to suggest !haemorrhage!.",
}


@cache
def _chest_task() -> Task:
    return load_task("chest_ct")


@pytest.fixture(scope="module")
def chest() -> Task:
    return _chest_task()


@pytest.fixture(scope="module")
def brain() -> Task:
    return load_task("brain_mri")


def unmark(marked: str) -> tuple[str, list[tuple[int, str, Assertion]]]:
    """The plain text, and (position, words, assertion) of each marked mention."""
    text, wanted, last = "", [], 0
    for match in MARKED.finditer(marked):
        text += marked[last : match.start()]
        number = next(i for i, words in enumerate(match.groups()) if words is not None)
        wanted.append((len(text), match.group(number + 1), list(MARKS.values())[number]))
        text += match.group(number + 1)
        last = match.end()
    return text + marked[last:], wanted


def check(task: Task, marked: str) -> None:
    text, wanted = unmark(marked)
    assert wanted, "the row marks no mention"
    found = read_mentions(task, text).entities
    for position, words, assertion in wanted:
        at = {m.assertion for m in found if m.span.start < position + len(words) and position < m.span.end}
        assert at == {assertion}, f"'{words}' in '{text}' is {at or 'no mention'}"


@pytest.mark.parametrize("marked", CHEST.values(), ids=CHEST.keys())
def test_chest_mention_is_asserted_as_marked(chest: Task, marked: str) -> None:
    check(chest, marked)


@pytest.mark.parametrize("marked", BRAIN.values(), ids=BRAIN.keys())
def test_brain_mention_is_asserted_as_marked(brain: Task, marked: str) -> None:
    check(brain, marked)


def test_denied_increase_is_a_negated_value_beside_a_present_finding(brain: Task) -> None:
    mentions = read_mentions(brain, "No increase of the glioma.")
    assert [m.assertion for m in mentions.entities] == ["present"]
    assert all(m.assertion == "negated" for m in mentions.values if m.name == "progression")


def test_third_task_without_cues_of_its_own_reads_negation(tmp_path: Path) -> None:
    path = tmp_path / "knee.yaml"
    path.write_text(
        "task: knee\ntitle: Knee\nentities:\n  tear:\n    label: tear\n    keywords: {en: [tear], ko: [파열]}\n"
        "values:\n  medial:\n    label: medial\n    keywords: {en: [medial]}\n"
        "steps:\n  - name: tears\n    kind: relation\n    heading: Targets\n    instruction: List.\n    subjects: [tear]\n"
        "    values: [medial]\n"
        "    examples:\n      - report: medial tear\n        hints: [tear]\n        answer: {tear: [medial]}\n",
        encoding="utf-8",
    )
    task = load_task(path)
    assert [m.assertion for m in read_mentions(task, "No tear. 파열 없음. tear 있음.").entities] == [
        "negated",
        "negated",
        "present",
    ]


WORDS = st.sampled_from(
    [
        "no ",
        "nodule ",
        "결절 ",
        "없음",
        ", ",
        ". ",
        "\n",
        "RUL ",
        "resolved ",
        "(-) ",
        "but ",
        "effusion ",
        "8 mm ",
        "HISTORY: ",
        "FINDINGS: ",
        "이전 ",
        "- ",
    ]
)


@settings(deadline=None)  # the first call reads the task file
@given(st.lists(WORDS | st.text(max_size=4), max_size=25).map("".join))
def test_spans_lie_in_the_text_and_in_their_sentence(text: str) -> None:
    mentions = read_mentions(_chest_task(), text)
    for mention in (*mentions.entities, *mentions.values):
        assert 0 <= mention.span.start < mention.span.end <= len(text)
        sentence = mentions.sentences[mention.sentence]
        assert mention.span.start < sentence.end and sentence.start < mention.span.end

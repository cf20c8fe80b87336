from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.contracts import Span
from configs.keywords import compile_keyword
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import ConfigError, known_tasks, load_task

KNEE = """\
task: knee_mri
title: Knee MRI, tears
fragments:
  part: 'anterior|posterior'
entities:
  tear:
    label: meniscal tear
    keywords: {en: ['~torn~', 'tears?'], ko: [파열]}
  cyst:
    label: Baker's cyst
    values: [back]
    implied: [back]
    keywords: {en: ['Baker.?s cyst']}
values:
  front:
    label: anterior horn
    keywords: {en: ['{part} horn'], ko: [전각]}
  back:
    label: back of the knee
    keywords: {en: [popliteal]}
groups:
  finding:
    label: any finding
    entities: [tear, cyst]
traps:
  en: [tear film]
steps:
  - name: findings
    kind: presence
    heading: Target Findings
    instruction: Say which are present.
    subjects: [finding]
    examples:
      - report: a tear
        hints: [finding]
        answer: {finding: []}
  - name: places
    kind: relation
    heading: Target Findings
    only_if_present: findings
    instruction: Say where.
    subjects: [tear, cyst]
    values: [front, back]
    examples:
      - report: tear of the anterior horn, no cyst
        hints: [tear, cyst]
        answer: {tear: [front]}
        absent: [cyst]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "knee_mri.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, old: str, new: str) -> str:
    """The error of KNEE with one change, as `line: message`."""
    assert KNEE.count(old) == 1, old
    path = written(folder, KNEE.replace(old, new))
    with pytest.raises(ConfigError) as raised:
        load_task(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:")
    return message.removeprefix(f"{path}:")


def line_of(text: str) -> int:
    return KNEE[: KNEE.index(text)].count("\n") + 1


def test_a_third_task_needs_a_file_and_no_code(tmp_path: Path) -> None:
    task = load_task(written(tmp_path, KNEE))
    assert task.keys == ("tear", "cyst")
    assert task.groups == {"finding": ("tear", "cyst")}
    assert task.label("finding") == "any finding"
    assert task.label("front") == "anterior horn"
    findings, places = task.steps
    assert (findings.kind, findings.values) == ("presence", ())
    assert places.only_if_present == "findings"
    assert task.allowed_values("tear", places) == ("front", "back")
    assert task.allowed_values("cyst", places) == ("back",)
    assert places.prompt.examples[0].answer == {"tear": ("front",), "cyst": None}
    assert task.content_hash == hashlib.sha256(KNEE.encode()).hexdigest()
    text = "Tear of the posterior horn, 파열, tear film"
    assert entity_mentions(task, text) == [Mention("tear", Span(0, 4)), Mention("tear", Span(28, 30))]
    assert value_mentions(task, text) == [Mention("front", Span(12, 26))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("values: [back]\n", "values: [Back ]\n", "value 'Back' is not known; did you mean 'back'?"),
        ("implied: [back]", "implied: [front]", "value 'front' is not known; known: back"),
        ("entities: [tear, cyst]", "entities: [tear, cysts]", "entity 'cysts' is not known; did you mean 'cyst'?"),
        ("subjects: [finding]", "subjects: [findings]", "entity or group 'findings' is not known; did you mean 'finding'?"),
        ("values: [front, back]", "values: [front, bakc]", "value 'bakc' is not known; did you mean 'back'?"),
        ("only_if_present: findings", "only_if_present: places", "earlier presence step 'places' is not known; known: findings"),
        ("answer: {tear: [front]}", "answer: {taer: [front]}", "subject of this step 'taer' is not known; did you mean 'tear'?"),
        ("answer: {tear: [front]}", "answer: {tear: [frnt]}", "value of this step 'frnt' is not known; did you mean 'front'?"),
        ("absent: [cyst]", "absent: [cist]", "subject of this step 'cist' is not known; did you mean 'cyst'?"),
        ("absent: [cyst]", "absent: [tear]", "'tear' is both answered and absent"),
        ("hints: [tear, cyst]", "hints: [tear, mass]", "subject of this step 'mass' is not known; known: cyst, tear"),
        ("['{part} horn']", "['{prat} horn']", "fragment 'prat' is not known; did you mean 'part'?"),
        ("[popliteal]", "['(popliteal']", "keyword '(popliteal' is not a regular expression: missing ), unterminated subpattern"),
        ("[popliteal]", "['x*']", "keyword 'x*' matches the empty text"),
        ("{en: [popliteal]}", "{}", "no keyword; at least one, English or Korean, is expected"),
        ("label: back of the knee", "label: Anterior horn", "label 'Anterior horn' is already the label of 'front'"),
        ("values: [front, back]\n", "values: []\n", "step 'places' is of kind relation; a relation step needs values"),
        ("title: Knee", "titel: Knee", "'titel' is not known; did you mean 'title'?"),
        ("kind: presence", "kind: present", "'steps.0.kind' is 'present'; Input should be 'presence' or 'relation'"),
        ("    heading: Target Findings\n    only", "    only", "'steps.1.heading' is missing"),
    ],
)
def test_a_rule_that_is_broken_is_said_with_its_line_and_the_nearest_name(tmp_path: Path, old: str, new: str, message: str) -> None:
    said = problem(tmp_path, old, new)
    line, text = said.split(": ", 1)
    assert text == message
    assert line.isdigit()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("values: [front, back]", "values: [front, bakc]"),
        ("[popliteal]", "['(popliteal']"),
        ("answer: {tear: [front]}", "answer: {taer: [front]}"),
        ("entities: [tear, cyst]", "entities: [tear, cysts]"),
        ("absent: [cyst]", "absent: [tear]"),
    ],
)
def test_the_line_is_the_one_that_was_changed(tmp_path: Path, old: str, new: str) -> None:
    assert problem(tmp_path, old, new).startswith(f"{line_of(old)}: ")


def test_an_example_may_only_answer_what_its_subject_can_have(tmp_path: Path) -> None:
    said = problem(tmp_path, "answer: {tear: [front]}\n        absent: [cyst]", "answer: {cyst: [front]}")
    assert said.endswith("value of 'cyst' 'front' is not known; known: back")


def test_one_name_for_an_entity_and_a_value_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, KNEE.replace("  back:\n", "  tear:\n").replace("back]", "tear]"))
    with pytest.raises(ConfigError, match="'tear' is the name of an entity and of a value or group"):
        load_task(path)


def test_an_unknown_task_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="task 'chest-ct' is not known; did you mean 'chest_ct'"):
        load_task("chest-ct")


def test_a_missing_file_is_said_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: file does not exist"):
        load_task(tmp_path / "none.yaml")


def test_only_task_files_are_known_tasks() -> None:
    assert known_tasks() == ["brain_mri", "chest_ct"]


def test_the_chest_task_has_the_published_ontology() -> None:
    task = load_task("chest_ct")
    assert task.keys == (
        "pleural_effusion", "ggo", "consolidation", "nodule", "mass", "atelectasis", "bronchiectasis", "fibrosis",
        "bronchial_wall_thickening", "pleural_thickening", "interstitial_thickening",
    )  # fmt: skip
    (step,) = task.steps
    assert set(step.subjects) == set(task.keys)
    assert step.values == ("right_lung", "left_lung", "left_lingula", "bll", "bul", "rul", "rml", "rll", "lul", "lll", "pleural")
    assert task.values["bll"].parts == ("rll", "lll")
    assert task.values["bul"].parts == ("rul", "lul")
    assert {name for name, value in task.values.items() if value.side == "left"} == {"left_lung", "left_lingula", "lul", "lll"}
    assert {name for name, value in task.values.items() if value.side is None} == {"bll", "bul", "pleural"}
    for key in ("pleural_effusion", "pleural_thickening"):
        assert task.entities[key].implied == task.entities[key].values == ("pleural",)
    assert "pleural" in task.allowed_values("nodule", step)
    assert "pleural" not in task.allowed_values("ggo", step)


def test_the_brain_task_asks_diagnoses_then_episodes_and_other_diseases() -> None:
    task = load_task("brain_mri")
    assert len(task.keys) == 8
    assert [(step.name, step.kind, step.only_if_present) for step in task.steps] == [
        ("diagnoses", "presence", None),
        ("episodes", "relation", "diagnoses"),
        ("non_tumor_diagnoses", "presence", "diagnoses"),
    ]
    assert task.groups["non_tumor_disease"] == task.steps[2].subjects
    assert task.steps[1].values == ("progression", "stable", "improvement")


@pytest.mark.parametrize("text", ["RUL의", "RUL", "(RUL)", "RUL2", "rul"])
def test_particles_and_digits_may_touch_an_english_keyword(text: str) -> None:
    assert compile_keyword("RUL", whole_word=True).search(text)


@pytest.mark.parametrize("text", ["RULs", "xRUL"])
def test_latin_letters_may_not_touch_an_english_keyword(text: str) -> None:
    assert not compile_keyword("RUL", whole_word=True).search(text)


@pytest.mark.parametrize("text", ["ground glass", "ground-glass", "ground\nglass", "ground - glass", "ground\u2011glass"])
def test_a_space_of_a_keyword_is_any_gap(text: str) -> None:
    assert compile_keyword("ground glass", whole_word=True).fullmatch(text)


def test_a_space_in_a_character_class_means_itself() -> None:
    assert compile_keyword("a[ -]b", whole_word=True).fullmatch("a b")
    assert not compile_keyword("a[ ]b", whole_word=True).fullmatch("a\nb")


def test_an_optional_space_may_be_missing() -> None:
    assert compile_keyword("ground ?glass", whole_word=True).fullmatch("groundglass")


@given(st.sampled_from(["consolidation", "atelectasis", "nodule", "metastasis"]), st.data())
def test_one_slip_of_typing_is_still_the_word_and_two_are_not(word: str, data: st.DataObject) -> None:
    pattern = compile_keyword(f"~{word}~", whole_word=True)
    at = data.draw(st.integers(1, len(word) - 1))
    slips = {
        "left out": word[:at] + word[at + 1 :],
        "added": word[:at] + "q" + word[at:],
        "replaced": word[:at] + "q" + word[at + 1 :],
        "swapped": word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
    }
    for slip in slips.values():
        assert pattern.fullmatch(slip), slip
    assert not pattern.fullmatch(word[:at] + "qqq" + word[at:])
    assert not pattern.fullmatch("q" + word[1:])


def test_no_keyword_of_the_shipped_tasks_is_a_plain_duplicate() -> None:
    for name in known_tasks():
        task = load_task(name)
        for item in [*task.entities.values(), *task.values.values()]:
            bodies = [pattern.pattern for pattern in item.patterns]
            assert len(bodies) == len(set(bodies)), item.key


def test_time_grows_with_the_length_of_a_report_and_not_with_its_square() -> None:
    task = load_task("chest_ct")
    sentence = "thyroid nodule and pleural fluid collection of the bronchial wall in the right lung "

    def seconds(n_sentences: int) -> float:
        started = time.process_time()
        for pattern in (*task.traps, *(p for item in (*task.entities.values(), *task.values.values()) for p in item.patterns)):
            for _ in pattern.finditer(sentence * n_sentences):
                pass
        return time.process_time() - started

    assert seconds(160) < 2.5 * 4 * seconds(40)

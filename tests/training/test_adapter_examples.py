"""What an adapter is taught: which letter each subject of a report should get, under hints with the errors of stage 1."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from configs.contracts import Report
from configs.schema import Task
from stage2_relations.branches import BranchPrompt
from training.adapter_examples import AdapterExample, AdapterExamples
from training.augment import LabelledText
from training.corpus import AnnotatedReport, read_corpus
from training.settings import AugmentationSettings, HintSettings

NO_ERRORS = HintSettings(missed=0, wrong_named=0, wrong_unnamed=0, none=0, unmentioned_weight=0.25)
CHANGES = AugmentationSettings(exchange_entities=1, exchange_values=1, exchange_wording=1, join_reports=0.5, change_case=0.5)
A, B, C, ABSENT = " A", " B", " C", " Z"  # of the tiny task: RUL, LUL, pleural, not present
Labels = Mapping[str, Sequence[str]]


def characters(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


def maker(
    task: Task,
    reports: Sequence[tuple[str, Labels]],
    *,
    hints: HintSettings = NO_ERRORS,
    augmentation: AugmentationSettings = AugmentationSettings(),  # noqa: B008  # frozen
    copies: int = 1,
    seed: int = 3,
    limit_tokens: int = 10_000,
) -> AdapterExamples:
    annotated = [
        AnnotatedReport(Report(f"r{number}", text), {key: tuple(values) for key, values in labels.items()}, None, number + 1)
        for number, (text, labels) in enumerate(reports)
    ]
    return AdapterExamples(
        task,
        annotated,
        characters,
        characters,
        augmentation=augmentation,
        hints=hints,
        copies=copies,
        seed=seed,
        limit_tokens=limit_tokens,
    )


def example(task: Task, text: str, labels: Labels, hints: HintSettings, *, seed: int = 0) -> AdapterExample:
    one = maker(task, [("Nodule in the RUL.", {"nodule": ["rul"]})], hints=hints)
    return one.example(LabelledText(text, {key: tuple(values) for key, values in labels.items()}), random.Random(seed))


def hinted(found: AdapterExample) -> list[str]:
    line = next(line for line in found.text.splitlines() if line.startswith("### Target Lesions: "))
    return [label for label in line.removeprefix("### Target Lesions: ").split(", ") if label]


def targets(task: Task, found: AdapterExample) -> dict[str, dict[str, tuple[float, float]]]:
    """Target and weight by subject and letter."""
    letters = BranchPrompt(task).letters
    return {
        branch.subject: {
            letters[column]: (target, weight)
            for column, target, weight in zip(branch.letters, branch.targets, branch.weights, strict=True)
        }
        for branch in found.branches
    }


YES, NO, SELDOM_YES, SELDOM_NO = (1.0, 1.0), (0.0, 1.0), (1.0, 0.25), (0.0, 0.25)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("Nodule in the RUL.", {"nodule": ["rul"]}, {"nodule": {A: YES, B: SELDOM_NO, ABSENT: NO}}),
        ("RUL, LUL 결절.", {"nodule": ["rul", "lul"]}, {"nodule": {A: YES, B: YES, ABSENT: NO}}),
        ("Nodule in the RUL, LUL clear.", {"nodule": ["rul"]}, {"nodule": {A: YES, B: NO, ABSENT: NO}}),
        ("Nodule at the right apex.", {"nodule": ["rul"]}, {"nodule": {A: SELDOM_YES, B: SELDOM_NO, ABSENT: NO}}),
        ("Nodule.", {"nodule": []}, {"nodule": {A: SELDOM_NO, B: SELDOM_NO, ABSENT: NO}}),
        ("Pleural effusion.", {"effusion": ["pleural"]}, {"effusion": {ABSENT: NO}}),  # what is implied needs no letter
        (
            "RUL 결절, LUL 종괴.",
            {"nodule": ["rul"], "mass": ["lul"]},
            {"nodule": {A: YES, B: NO, ABSENT: NO}, "mass": {A: NO, B: YES, ABSENT: NO}},
        ),
        ("Nodule in the RUL. No mass.", {"nodule": ["rul"]}, {"nodule": {A: YES, B: SELDOM_NO, ABSENT: NO}}),
        ("Normal.", {}, {}),
    ],
)
def test_each_subject_gets_the_letters_of_its_labels(
    tiny_task: Task, text: str, labels: Labels, expected: dict[str, dict[str, tuple[float, float]]]
) -> None:
    found = example(tiny_task, text, labels, NO_ERRORS)
    pleural = {key: {C: SELDOM_NO} if key != "effusion" else {} for key in expected}  # which no text here gives a nodule or mass
    assert targets(tiny_task, found) == {key: letters | pleural[key] for key, letters in expected.items()}
    assert hinted(found) == list(expected)
    assert found.trunk == characters(found.text)
    question = BranchPrompt(tiny_task).question(text, list(expected), list(expected))
    assert [branch.text for branch in found.branches] == list(question.branches)
    assert [branch.tokens for branch in found.branches] == [characters(branch) for branch in question.branches]
    assert found.n_tokens == len(found.text) + sum(map(len, question.branches))


def test_a_named_but_absent_subject_that_is_hinted_wrongly_is_to_be_rejected(tiny_task: Task) -> None:
    hints = HintSettings(missed=0, wrong_named=1, wrong_unnamed=0, none=0)
    found = example(tiny_task, "Nodule in the RUL. No mass.", {"nodule": ["rul"]}, hints)
    assert hinted(found) == ["nodule", "mass"]
    assert targets(tiny_task, found)["mass"] == {A: NO, B: (0.0, 0.1), C: (0.0, 0.1), ABSENT: YES}


def test_a_subject_that_is_nowhere_and_hinted_wrongly_is_to_be_rejected(tiny_task: Task) -> None:
    hints = HintSettings(missed=0, wrong_named=0, wrong_unnamed=1, none=0)
    found = example(tiny_task, "Nodule in the RUL. No mass.", {"nodule": ["rul"]}, hints)
    assert hinted(found) == ["nodule", "effusion"]
    assert targets(tiny_task, found)["effusion"] == {ABSENT: YES}


def test_a_present_subject_that_stage_1_missed_is_asked_and_not_hinted(tiny_task: Task) -> None:
    hints = HintSettings(missed=1, wrong_named=0, wrong_unnamed=0, none=0)
    found = example(tiny_task, "Nodule in the RUL. No mass.", {"nodule": ["rul"]}, hints)
    assert hinted(found) == []
    assert targets(tiny_task, found)["nodule"][A] == YES


def test_without_a_hint_line_every_named_subject_is_asked(tiny_task: Task) -> None:
    hints = HintSettings(missed=0, wrong_named=0, wrong_unnamed=0, none=1)
    found = example(tiny_task, "Nodule in the RUL. No mass.", {"nodule": ["rul"]}, hints)
    assert hinted(found) == []
    assert {subject: letters[ABSENT] for subject, letters in targets(tiny_task, found).items()} == {"nodule": NO, "mass": YES}


def test_hint_errors_come_as_often_as_the_settings_say(tiny_task: Task) -> None:
    hints = HintSettings(missed=0.2, wrong_named=0.5, wrong_unnamed=0.1, none=0.1)
    drawn = [example(tiny_task, "Nodule in the RUL. No mass.", {"nodule": ["rul"]}, hints, seed=seed) for seed in range(600)]
    shares = {key: sum(key in hinted(one) for one in drawn) / len(drawn) for key in tiny_task.keys}
    # Three standard errors of a share of 600 draws are 0.061 at most.
    assert shares == pytest.approx({"nodule": 0.9 * 0.8, "mass": 0.9 * 0.5, "effusion": 0.9 * 0.1}, abs=0.061)
    assert all("nodule" in targets(tiny_task, one) for one in drawn)


def test_an_epoch_is_a_function_of_its_number(tiny_task: Task, tiny_corpus: Path) -> None:
    reports = [(item.report.text, item.labels) for item in read_corpus(tiny_corpus, tiny_task).splits["train"]]
    first, second = (maker(tiny_task, reports, hints=HintSettings(), augmentation=CHANGES, copies=2) for _ in range(2))
    assert second.examples(1) == first.examples(1)  # whatever was drawn before
    assert first.examples(0) == second.examples(0)
    assert first.examples(0) != first.examples(1)
    assert len(first.examples(0)) == len(first.examples(1))
    other = maker(tiny_task, reports, hints=HintSettings(), augmentation=CHANGES, copies=2, seed=4)
    assert other.examples(1) != first.examples(1)


def test_the_first_copy_of_the_first_epoch_is_the_report_as_given(tiny_task: Task) -> None:
    reports = [("Nodule in the RUL.", {"nodule": ["rul"]}), ("LUL 종괴.", {"mass": ["lul"]})]
    one = maker(tiny_task, reports, augmentation=CHANGES, copies=3)
    as_given = [said for text, labels in reports for said in BranchPrompt(tiny_task).question(text, [], list(labels)).branches]
    first, second = ([branch.text for found in one.examples(epoch) for branch in found.branches] for epoch in (0, 1))
    assert first[:2] == as_given
    assert first[2:] != as_given * 2
    assert second[:2] != as_given


def test_reports_too_long_for_training_are_left_out_and_counted(tiny_task: Task) -> None:
    long = "Nodule in the RUL. " * 30
    reports = [("Nodule in the RUL.", {"nodule": ["rul"]}), (long, {"nodule": ["rul"]})]
    question = BranchPrompt(tiny_task).question(reports[0][0], ["nodule"], ["nodule"])
    limit = len(question.trunk) + len(question.branches[0])
    one = maker(tiny_task, reports, augmentation=CHANGES, copies=4, limit_tokens=limit)
    assert one.n_left_out == 1
    for epoch in range(3):
        found = one.examples(epoch)
        assert len(found) == 4
        assert all(example.n_tokens <= limit for example in found)
        assert not any("RUL. Nodule" in branch.text for example in found for branch in example.branches)

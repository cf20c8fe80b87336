from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import Task
from stage1_encoder.marks import WindowCut
from stage1_encoder.tokenizer import ReportTokenizer
from stage1_encoder.weak_labels import KeywordFlagger
from training.augment import LabelledText
from training.corpus import CorpusError, read_corpus
from training.flag_examples import ExampleMaker, FlagExample, weak_texts
from training.held_out import HeldOut
from training.settings import AugmentationSettings

ALL = AugmentationSettings(
    exchange_entities=1,
    exchange_values=1,
    exchange_wording=1,
    join_reports=0.5,
    add_statements=1,
    typos=0,
    change_case=1,
    remove_headers=1,
    particles=1,
)


@pytest.fixture
def cut(tiny_corpus: Path, tiny_task: Task) -> WindowCut:
    texts = [item.report.text for item in read_corpus(tiny_corpus, tiny_task).splits["train"]]
    return WindowCut(ReportTokenizer.train(texts, vocabulary_size=500), tiny_task, window_tokens=48, overlap_tokens=8)


def _maker(task: Task, corpus: Path, cut: WindowCut, settings: AugmentationSettings, *, copies: int) -> ExampleMaker:
    weak = [LabelledText("No mass. 종괴 없음.", {"mass": ()}), LabelledText("Normal.", {})]
    reports = read_corpus(corpus, task).splits["train"]
    return ExampleMaker(task, cut, reports, settings, copies=copies, seed=4, weak=weak, weak_weight=0.25)


def _text(example: FlagExample, cut: WindowCut) -> str:
    return cut.tokenizer.decode(example.windows[0].ids)


def test_an_epoch_is_a_function_of_its_number(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    first, second = (_maker(tiny_task, tiny_corpus, cut, ALL, copies=3) for _ in range(2))
    assert first.examples(2) == second.examples(2)
    assert first.examples(2) != first.examples(3)
    assert len(first.examples(2)) == len(first.examples(3)) == 20 * 3 + 2


def test_the_first_copy_is_the_report_as_given(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    maker = _maker(tiny_task, tiny_corpus, cut, ALL, copies=2)
    for item, example in zip(read_corpus(tiny_corpus, tiny_task).splits["train"], maker.examples(0), strict=False):
        assert example.windows == cut.windows(item.report.text)
        assert example.targets == tuple(float(key in item.labels) for key in tiny_task.keys)


def test_augmentation_switched_off_changes_nothing(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    examples = _maker(tiny_task, tiny_corpus, cut, AugmentationSettings(), copies=2).examples(1)
    assert examples[:20] == examples[20:40]


def test_augmented_labels_stay_true(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    """In the tiny corpus a key is negated exactly where its line says No, 없음, Negative … : read the augmented text again."""
    maker = _maker(
        tiny_task, tiny_corpus, cut, ALL.model_copy(update={"change_case": 0, "particles": 0, "add_statements": 0}), copies=4
    )
    changed = 0
    plain = {_text(example, cut) for example in maker.examples(0)[:20]}
    for example in maker.examples(5)[20:80]:
        text = _text(example, cut)
        changed += text not in plain
        present = set()
        for sentence in text.replace("없음.", "없음.|").replace(". ", ".|").split("|"):
            if "No " not in sentence and "없음" not in sentence:
                present |= set(KeywordFlagger(tiny_task).flag([sentence])[0].decided)
        assert example.targets == tuple(float(key in present) for key in tiny_task.keys), text
    assert changed > 20


def test_weak_texts_without_labels_get_those_of_keywords(tiny_task: Task, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(
        '{"report_id": "w1", "text": "No mass. 종괴 없음."}\n{"report_id": "w2", "text": "Normal."}\n', encoding="utf-8"
    )
    assert weak_texts(path, tiny_task) == [LabelledText("No mass. 종괴 없음.", {"mass": ()}), LabelledText("Normal.", {})]


def test_weak_texts_with_labels_keep_them(tiny_task: Task, tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    path.write_text('{"report_id": "w1", "task": "tiny", "text": "No mass. Nodule.", "labels": {"nodule": []}}\n', encoding="utf-8")
    assert weak_texts(path, tiny_task) == [LabelledText("No mass. Nodule.", {"nodule": ()})]


def test_a_weak_file_with_labels_on_some_lines_only_is_refused_with_the_line(tiny_task: Task, tmp_path: Path) -> None:
    path = tmp_path / "weak.jsonl"
    rows = ['{"report_id": "w1", "text": "Normal."}', '{"report_id": "w2", "text": "Mass.", "labels": {"mass": []}}']
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(CorpusError, match=r"weak\.jsonl:2: has labels"):
        weak_texts(path, tiny_task)
    path.write_text(
        '{"report_id": "w1", "task": "tiny", "text": "Mass.", "labels": {}}\n{"report_id": "w2", "task": "tiny", "text": "Mass."}',
        encoding="utf-8",
    )
    with pytest.raises(CorpusError, match=r"weak\.jsonl:2: field 'labels' is missing"):
        weak_texts(path, tiny_task)


@pytest.mark.parametrize("labelled", [True, False])
def test_reports_of_a_measured_split_are_left_out_of_weak_texts_and_counted(
    tiny_task: Task, tiny_corpus: Path, weak_file: Path, caplog: pytest.LogCaptureFixture, labelled: bool
) -> None:
    if not labelled:
        rows = [json.loads(line) for line in weak_file.read_text("utf-8").splitlines()]
        known = ("report_id", "patient_id", "text")
        weak_file.write_text("".join(json.dumps({name: row[name] for name in known}) + "\n" for row in rows), encoding="utf-8")
    (free,) = weak_texts(weak_file, tiny_task, HeldOut.of([tiny_corpus]))
    assert free.text == "Mass in the LUL, archive."
    assert "weak.jsonl: 4 of 5 reports are left out: report_id, patient_id or text stands in dev.jsonl or test.jsonl" in caplog.text
    assert len(weak_texts(weak_file, tiny_task)) == 5


def test_reports_of_train_are_not_held_out(tiny_task: Task, tiny_corpus: Path) -> None:
    held_out = HeldOut.of([tiny_corpus])
    splits = read_corpus(tiny_corpus, tiny_task).splits
    assert all(item.report in held_out for item in splits["dev"])
    assert not any(replace(item.report, text=f"{item.report.text} t") in held_out for item in splits["train"])


def test_weak_labels_have_their_own_weight(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    weak = _maker(tiny_task, tiny_corpus, cut, ALL, copies=1).examples(0)[20:]
    assert [example.weight for example in weak] == [0.25, 0.25]
    assert weak[0].targets == tuple(float(key == "mass") for key in tiny_task.keys)
    assert sum(weak[1].targets) == 0


def test_lost_marks_leave_tokens_and_labels(tiny_task: Task, tiny_corpus: Path, cut: WindowCut) -> None:
    kept = _maker(tiny_task, tiny_corpus, cut, AugmentationSettings(), copies=2).examples(1)[20:40]
    lost = _maker(tiny_task, tiny_corpus, cut, AugmentationSettings(lose_marks=1), copies=2).examples(1)[20:40]
    assert any(window.marks for example in kept for window in example.windows)
    assert not any(window.marks for example in lost for window in example.windows)
    assert [(e.windows[0].ids, e.targets) for e in lost] == [(e.windows[0].ids, e.targets) for e in kept]

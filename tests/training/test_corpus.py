from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.schema import Task, load_task
from training.corpus import CorpusError, read_annotations, read_corpus, read_texts

GOOD = {
    "report_id": "r1",
    "task": "tiny",
    "patient_id": "p1",
    "date": "2021-02-03",
    "text": "Nodule in the RUL.",
    "labels": {"nodule": ["rul"]},
}


def _file(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_a_good_line_becomes_a_report(tiny_task: Task, tmp_path: Path) -> None:
    (item,) = read_annotations(_file(tmp_path, GOOD), tiny_task)
    assert item.report.report_id == "r1"
    assert item.report.study_date == "2021-02-03"
    assert item.labels == {"nodule": ("rul",)}
    assert item.line == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"nodul": ["rul"]}}, r"label 'nodul' is not known; did you mean 'nodule'\?"),
        ({"labels": {"nodule": ["RUL "]}}, r"value 'RUL ' of 'nodule' is not known; did you mean 'rul'\?"),
        ({"labels": {"effusion": ["rul"]}}, "'effusion' cannot have value 'rul'"),
        ({"labels": {"nodule": ["rul", "rul"]}}, "'nodule' has a value twice"),
        ({"lables": {}}, r"field 'lables' is not known; did you mean 'labels'\?"),
        ({"task": "chest_ct"}, "task 'chest_ct' is not 'tiny'"),
        ({"text": ""}, "field 'text'"),
        ({"text": 7}, "field 'text'"),
        ({"report_id": "r1"}, "report_id 'r1' stands twice; first in line 1"),
    ],
)
def test_a_wrong_line_is_named_with_file_and_line(tiny_task: Task, tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = _file(tmp_path, GOOD, {**GOOD, "report_id": "r2", **change})
    with pytest.raises(CorpusError, match=rf"train\.jsonl:2: {message}") as caught:
        read_annotations(path, tiny_task)
    assert "Nodule in the RUL" not in str(caught.value)


def test_a_missing_field_is_named(tiny_task: Task, tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "labels"}
    with pytest.raises(CorpusError, match=r"train\.jsonl:1: field 'labels' is missing"):
        read_annotations(_file(tmp_path, row), tiny_task)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"report_id": "r2"', ":2: is not JSON"),
        ("[1]", ":2: holds list; an object is expected"),
        ('{"report_id": "a", "report_id": "b"}', ":2: 'report_id' stands twice"),
    ],
)
def test_a_line_that_is_no_object_is_named(tiny_task: Task, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=message):
        read_annotations(path, tiny_task)


def test_line_separators_inside_a_text_do_not_end_the_line(tiny_task: Task, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({**GOOD, "text": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_annotations(path, tiny_task)[0].report.text == "a\u2028b\u0085c"


def test_a_corpus_has_its_splits_and_a_hash(tiny_task: Task, tiny_corpus: Path) -> None:
    corpus = read_corpus(tiny_corpus, tiny_task)
    assert {split: len(reports) for split, reports in corpus.splits.items()} == {"train": 20, "dev": 10}
    assert corpus.warnings == ()
    path = tiny_corpus / "dev.jsonl"
    path.write_text(path.read_text().replace("d-000", "d-900"))
    assert read_corpus(tiny_corpus, tiny_task).content_hash != corpus.content_hash


def test_a_missing_or_empty_split_is_an_error(tiny_task: Task, tiny_corpus: Path) -> None:
    (tiny_corpus / "dev.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match=r"dev\.jsonl: holds no report"):
        read_corpus(tiny_corpus, tiny_task)
    (tiny_corpus / "dev.jsonl").unlink()
    with pytest.raises(CorpusError, match=r"dev\.jsonl: file does not exist"):
        read_corpus(tiny_corpus, tiny_task)
    with pytest.raises(CorpusError, match="is no folder"):
        read_corpus(tiny_corpus / "nowhere", tiny_task)


@pytest.mark.parametrize("name", ["report_id", "patient_id"])
def test_a_report_or_patient_in_two_splits_is_an_error(tiny_task: Task, tiny_corpus: Path, name: str) -> None:
    path = tiny_corpus / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3][name] = {"report_id": "t-000", "patient_id": "t-P000"}[name]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match=rf"dev\.jsonl:4: {name} 't-P?000' stands in train\.jsonl too"):
        read_corpus(tiny_corpus, tiny_task)


@pytest.mark.parametrize(
    ("split", "labels", "state"), [("train", {}, "never present"), ("train", {"mass": []}, "present in every report")]
)
def test_a_key_of_one_class_stops_training(
    tiny_task: Task, tiny_corpus: Path, split: str, labels: dict[str, list[str]], state: str
) -> None:
    path = tiny_corpus / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["labels"] = {**{key: value for key, value in row["labels"].items() if key != "mass"}, **labels}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError, match=rf"train\.jsonl: 'mass' is {state} \(n=20\); training needs both"):
        read_corpus(tiny_corpus, tiny_task)


def test_a_key_of_one_class_in_dev_is_a_warning(tiny_task: Task, tiny_corpus: Path) -> None:
    path = tiny_corpus / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["labels"].pop("mass", None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (warning,) = read_corpus(tiny_corpus, tiny_task).warnings
    assert warning.endswith("dev.jsonl: 'mass' is never present (n=10)")


def test_unlabelled_texts_need_an_id_and_a_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"report_id": "a", "text": "x", "extra": 1}\n{"report_id": "b"}\n')
    with pytest.raises(CorpusError, match=r"texts\.jsonl:2: report_id and text"):
        read_texts(path)


@pytest.mark.parametrize("task", ["chest_ct", "brain_mri"])
def test_the_shipped_corpus_is_readable(task: str) -> None:
    corpus = read_corpus(Path(__file__).parents[2] / "training" / "corpus" / task, load_task(task))
    assert len(corpus.splits["train"]) > 100

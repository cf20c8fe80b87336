"""Bad gold and record files are refused with file and line; they never become a wrong figure."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import load_task
from eval.cli import app
from eval.gold import GoldError, gold_sha256, pair_up, read_answers, read_gold, read_gold_reports, read_predictions, texts_sha256

TASK = load_task("chest_ct")


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gold_row(report_id: str, **labels: list[str]) -> dict[str, object]:
    return {"report_id": report_id, "task": "chest_ct", "labels": labels}


def record(report_id: str, status: str = "ok", **labels: list[str]) -> dict[str, object]:
    failed = status in ("failed", "rejected")
    entities = [{"key": key, "present": key in labels, "confidence": None, "spans": []} for key in TASK.keys]
    relations = [
        {"subject": key, "value": value, "confidence": None, "subject_span": None, "value_span": None}
        for key, values in labels.items()
        for value in values
    ]
    return {
        "report_id": report_id,
        "task": "chest_ct",
        "status": status,
        "entities": None if failed else entities,
        "relations": None if failed else relations,
        "hints": None,
        "problem": "for the test" if failed else None,
        "provenance": {"fingerprint": "0" * 32},
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([gold_row("a", nodul=["rul"])], ":1: label 'nodul' is not known; did you mean 'nodule'?"),
        ([gold_row("a"), gold_row("b", nodule=["RUL "])], ":2: value 'RUL ' of 'nodule' is not known; did you mean 'rul'?"),
        ([gold_row("a", pleural_effusion=["rll"])], ":1: 'pleural_effusion' cannot have value 'rll'"),
        ([gold_row("a", nodule=["rul", "rul"])], ":1: 'nodule' has a value twice"),
        ([gold_row("a"), gold_row("a")], ":2: report_id 'a' stands twice; first in line 1"),
        ([{"task": "chest_ct", "labels": {}}], ":1: field 'report_id' is missing"),
        ([{"report_id": "a"}], ":1: field 'labels' is missing"),
        ([{**gold_row("a"), "labels": ["nodule"]}], ":1: field 'labels': Input should be a valid dictionary"),
        ([{"report_id": "a", "label": {}}], ":1: field 'label' is not known; did you mean 'labels'?"),
        ([{**gold_row("a"), "patientid": "p"}], ":1: field 'patientid' is not known; did you mean 'patient_id'?"),
        ([{**gold_row("a"), "task": "brain_mri"}], ":1: task 'brain_mri' is not 'chest_ct'"),
        ([gold_row("a"), record("b", nodule=[])], ":2: field 'labels' is missing"),
        (["{"], ":1: is not JSON"),
        ([], "holds no report"),
    ],
)
def test_a_bad_gold_file_is_refused_with_its_line(tmp_path: Path, rows: list[object], said: str) -> None:
    path = lines(tmp_path / "gold.jsonl", *rows)
    with pytest.raises(GoldError) as error:
        read_gold(path, TASK)
    assert str(error.value).startswith(f"{path}")
    assert said in str(error.value)


def test_a_gold_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_bytes(json.dumps(gold_row("a")).encode() + b"\n" + '{"report_id": "결'.encode("cp949") + b'"}\n')
    with pytest.raises(GoldError, match=r"gold.jsonl:2: is not UTF-8 at byte 15 of the line"):
        read_gold(path, TASK)


def test_a_gold_row_needs_neither_task_nor_text_and_other_fields_are_passed_over(tmp_path: Path) -> None:
    path = lines(tmp_path / "gold.jsonl", {"report_id": "a", "labels": {"nodule": []}, "annotator": "KJ", "scanner": 7})
    (report,) = read_gold_reports(path, TASK)
    assert (report.text, report.patient_id, report.style) == (None, None, None)
    assert report.labels.values == {"nodule": frozenset()}


def test_fields_labels_and_values_are_known_by_name_and_never_by_place(tmp_path: Path) -> None:
    """Mistake 11: gold columns addressed by position."""
    rows = [
        json.loads(line)
        for line in (Path(__file__).parents[2] / "training/corpus/chest_ct/dev.jsonl").read_text("utf-8").splitlines()
    ]
    shuffled = []
    for number, row in enumerate(rows):
        order = random.Random(number)
        labels = {
            key: order.sample(values, len(values)) for key, values in order.sample(list(row["labels"].items()), len(row["labels"]))
        }
        shuffled.append(dict(order.sample(list({**row, "labels": labels}.items()), len(row))))
    assert any(list(a) != list(b) for a, b in zip(rows, shuffled, strict=True))
    plain = read_gold_reports(lines(tmp_path / "plain.jsonl", *rows), TASK)
    mixed = read_gold_reports(lines(tmp_path / "mixed.jsonl", *shuffled), TASK)
    assert plain == mixed
    assert gold_sha256(plain) == gold_sha256(mixed)


def test_hashes_tell_texts_and_labels_apart(tmp_path: Path) -> None:
    first = read_gold_reports(lines(tmp_path / "a.jsonl", {**gold_row("a", nodule=["rul"]), "text": "x"}), TASK)
    relabelled = read_gold_reports(lines(tmp_path / "b.jsonl", {**gold_row("a", nodule=["rll"]), "text": "x"}), TASK)
    rewritten = read_gold_reports(lines(tmp_path / "c.jsonl", {**gold_row("a", nodule=["rul"]), "text": "y"}), TASK)
    assert texts_sha256(first) == texts_sha256(relabelled) != texts_sha256(rewritten)
    assert gold_sha256(first) != gold_sha256(relabelled)


def test_records_of_another_task_are_refused_with_their_line(tmp_path: Path) -> None:
    path = lines(tmp_path / "records.jsonl", record("b", nodule=[]), {**record("a", nodule=[]), "task": "brain_mri"})
    with pytest.raises(GoldError, match=r"records.jsonl:2: record is of task 'brain_mri'; 'chest_ct' is expected"):
        read_predictions(path, TASK)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**record("a", nodule=[]), "status": "fine"}, r":1: 'status' is str; expected one of ok"),
        ({"report_id": "a", "task": "chest_ct", "status": "ok"}, r":1: record has no "),
        (record("a", nodule=["RUL"]), r":1: value 'RUL' is not known; did you mean 'rul'\?"),
    ],
)
def test_a_row_that_is_no_record_is_refused_with_its_line(tmp_path: Path, row: dict[str, object], said: str) -> None:
    with pytest.raises(GoldError, match=said):
        read_predictions(lines(tmp_path / "records.jsonl", row), TASK)


def test_a_record_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "records.jsonl", record("a", nodule=[]), record("a", nodule=[]))
    with pytest.raises(GoldError, match=r":2: report_id 'a' stands twice"):
        read_predictions(path, TASK)


def test_answers_may_come_in_the_format_of_the_gold(tmp_path: Path) -> None:
    answers = read_answers(lines(tmp_path / "annotator.jsonl", gold_row("a", nodule=["rul"])), TASK)
    assert answers["a"].record is None
    assert answers["a"].labels is not None
    assert answers["a"].labels.values == {"nodule": frozenset({"rul"})}


def test_a_gold_report_without_a_record_is_an_error_and_not_a_miss(tmp_path: Path) -> None:
    gold = read_gold(lines(tmp_path / "gold.jsonl", gold_row("a"), gold_row("b")), TASK)
    predicted = read_predictions(lines(tmp_path / "records.jsonl", record("a", "no_findings")), TASK)
    with pytest.raises(GoldError, match="1 of 2 gold reports have no record; the first is 'b'"):
        pair_up(gold, predicted)


def test_score_prints_a_row_for_each_system_with_dashes_where_undefined(tmp_path: Path) -> None:
    gold = lines(tmp_path / "gold.jsonl", gold_row("a", nodule=["rul"]), gold_row("b", nodule=["lll"]))
    good = lines(tmp_path / "good.jsonl", record("a", nodule=["rul"]), record("b", "failed"))
    result = CliRunner().invoke(app, ["score", str(gold), str(good), "--task", "chest_ct"])
    assert result.exit_code == 0
    row = result.stdout.splitlines()[1].split()
    assert row[:4] == ["good.jsonl", "2", "1", "50.0"]
    assert "–" in row  # no gold-empty report, so specificity is undefined


def test_a_run_directory_with_a_damaged_part_is_not_scored(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with pytest.raises(GoldError, match="holds no part file"):
        read_predictions(tmp_path, TASK)
    part = lines(tmp_path / "parts" / "part-000000-0123456789abcdef.jsonl", record("a", nodule=["rul"]))
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    part.with_name(part.name + ".sha256").write_text(f"# 1 records\n{digest}  {part.name}\n")
    assert set(read_predictions(tmp_path, TASK)) == {"a"}
    part.write_text(part.read_text().replace("rul", "lul"))
    with pytest.raises(GoldError, match="is damaged"):
        read_predictions(tmp_path, TASK)


def test_score_ends_with_one_line_and_exit_two_on_a_missing_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["score", str(tmp_path / "none.jsonl"), str(tmp_path), "--task", "chest_ct"])
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1

"""Bad gold and record files are refused with file and line; they never become a wrong figure."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import load_task
from eval.cli import app
from eval.gold import GoldError, pair_up, read_gold, read_predictions

TASK = load_task("chest_ct")


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def gold_row(report_id: str, **labels: list[str]) -> dict[str, object]:
    return {"report_id": report_id, "task": "chest_ct", "labels": labels}


def record(report_id: str, status: str = "ok", **labels: list[str]) -> dict[str, object]:
    if status in ("failed", "rejected"):
        return {"report_id": report_id, "task": "chest_ct", "status": status, "entities": None, "relations": None}
    return {
        "report_id": report_id,
        "task": "chest_ct",
        "status": status,
        "entities": [{"key": key, "present": key in labels} for key in TASK.keys],
        "relations": [{"subject": key, "value": value} for key, values in labels.items() for value in values],
    }


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([gold_row("a", nodul=["rul"])], ":1: key 'nodul' is not known; did you mean 'nodule'?"),
        ([gold_row("a"), gold_row("b", nodule=["RUL "])], ":2: value 'RUL ' of 'nodule' is not known; did you mean 'rul'?"),
        ([gold_row("a"), gold_row("a")], ":2: report_id 'a' stands twice; first in line 1"),
        ([{"task": "chest_ct", "labels": {}}], ":1: has no 'report_id'"),
        ([{**gold_row("a"), "task": "brain_mri"}], ":1: task is 'brain_mri'; 'chest_ct' is expected"),
        (["{"], ":1: is not JSON"),
        ([], "holds no report"),
    ],
)
def test_a_bad_gold_file_is_refused_with_its_line(tmp_path: Path, rows: list[object], said: str) -> None:
    path = lines(tmp_path / "gold.jsonl", *rows)
    with pytest.raises(GoldError) as error:
        read_gold(path, TASK)
    assert said in str(error.value)


def test_a_gold_file_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_bytes(json.dumps(gold_row("a")).encode() + b"\n" + '{"report_id": "결'.encode("cp949") + b'"}\n')
    with pytest.raises(GoldError, match=r"gold.jsonl:2: is not UTF-8 at byte 15 of the line"):
        read_gold(path, TASK)


def test_records_of_another_task_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "records.jsonl", {**record("a"), "task": "brain_mri"})
    with pytest.raises(GoldError, match="record is of task 'brain_mri'"):
        read_predictions(path, TASK)


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

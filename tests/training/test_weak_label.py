"""Weak labels: negation is read, rows are streamed, and no row is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import Task
from pipeline.annotations import AnnotationError, read_annotations
from training.cli import app

REPORTS = [
    ("w1", "A 6 mm nodule in the RUL. No mass. 흉수 없음."),
    ("w2", "Pleural effusion has resolved. LUL 종괴."),
    ("w3", "Normal study."),
]


def _run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["weak-label", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def _archive(path: Path, rows: list[tuple[str, object]]) -> Path:
    path.write_text(
        "".join(json.dumps({"acc": name, "body": text}, ensure_ascii=False) + "\n" for name, text in rows), encoding="utf-8"
    )
    return path


def _columns(task: Path, out: Path) -> list[object]:
    return ["--task", task, "--out", out, "--id-column", "acc", "--text-column", "body"]


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labels_say_what_is_stated_as_present_and_where(tmp_path: Path, tiny_task_file: Path) -> None:
    out = tmp_path / "weak.jsonl"
    code, output = _run(_archive(tmp_path / "in.jsonl", REPORTS), *_columns(tiny_task_file, out))
    assert code == 0, output
    assert [line["labels"] for line in _lines(out)] == [{"nodule": ["rul"]}, {"mass": ["lul"]}, {}]
    assert _lines(out)[0] == {
        "report_id": "w1",
        "task": "tiny",
        "text": REPORTS[0][1],
        "labels": {"nodule": ["rul"]},
        "source": "weak",
    }
    assert "3 reports, 1 of them with no finding" in output
    assert [line.split() for line in output.splitlines() if line.startswith("  ")] == [
        ["nodule", "1"],
        ["mass", "1"],
        ["effusion", "0"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "tiny.yaml", "weak.jsonl"]


def test_the_file_is_an_annotation_file_and_never_a_gold_file(tmp_path: Path, tiny_task_file: Path, tiny_task: Task) -> None:
    out = tmp_path / "weak.jsonl"
    _run(_archive(tmp_path / "in.jsonl", REPORTS), *_columns(tiny_task_file, out))
    assert [dict(item.labels) for item in read_annotations(out, tiny_task)] == [{"nodule": ("rul",)}, {"mass": ("lul",)}, {}]
    with pytest.raises(AnnotationError, match=r"weak\.jsonl:1: labels that rules made are no gold standard"):
        read_annotations(out, tiny_task, strict=False)


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path, tiny_task_file: Path) -> None:
    out = tmp_path / "weak.jsonl"
    code, output = _run(_archive(tmp_path / "in.jsonl", [*REPORTS, ("w4", None), ("w5", " ")]), *_columns(tiny_task_file, out))
    assert code == 1
    assert "2 rows could not be used" in output
    assert len(_lines(out)) == 3
    assert _lines(tmp_path / "weak.jsonl.unusable.jsonl") == [
        {"report_id": "w4", "problem": "text is null; a string is expected"},
        {"report_id": "w5", "problem": "text holds nothing but white space and control characters"},
    ]


def test_patient_and_date_are_carried_and_csv_is_read(tmp_path: Path, tiny_task_file: Path) -> None:
    path, out = tmp_path / "in.csv", tmp_path / "weak.jsonl"
    path.write_text("report_id,text,patient_id,date\nw1,Nodule.,P1,2020-01-02\n", encoding="utf-8")
    assert _run(path, "--task", tiny_task_file, "--out", out)[0] == 0
    (line,) = _lines(out)
    assert (line["patient_id"], line["date"], line["labels"]) == ("P1", "2020-01-02", {"nodule": []})


def test_decomposed_korean_is_written_as_the_stages_read_it(tmp_path: Path, tiny_task_file: Path) -> None:
    import unicodedata

    out = tmp_path / "weak.jsonl"
    _run(_archive(tmp_path / "in.jsonl", [("w1", unicodedata.normalize("NFD", "LUL 종괴."))]), *_columns(tiny_task_file, out))
    assert _lines(out)[0]["text"] == "LUL 종괴."
    assert _lines(out)[0]["labels"] == {"mass": ["lul"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("w1", "Nodule."), ("w1", "Mass.")], "report id 'w1' stands a second time"),
        ([("", "Nodule.")], "has no report id"),
    ],
)
def test_an_archive_without_trustworthy_ids_is_refused_and_nothing_is_written(
    tmp_path: Path, tiny_task_file: Path, rows: list[tuple[str, object]], message: str
) -> None:
    out = tmp_path / "weak.jsonl"
    code, output = _run(_archive(tmp_path / "in.jsonl", rows), *_columns(tiny_task_file, out))
    assert code == 2
    assert message in output
    assert not list(tmp_path.glob("*weak*"))


def test_a_file_that_exists_is_not_replaced(tmp_path: Path, tiny_task_file: Path) -> None:
    path = _archive(tmp_path / "in.jsonl", REPORTS)
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / "o.jsonl.unusable.jsonl").write_text("mine", encoding="utf-8")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for out, written in ((path, "in.jsonl"), (mine, "mine.jsonl"), (tmp_path / "o.jsonl", "o.jsonl.unusable.jsonl")):
        code, output = _run(path, *_columns(tiny_task_file, out))
        assert (code, f"{written}: exists already; a new file is expected" in output.replace("\n", "")) == (2, True), output
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    code, output = _run(tmp_path / "i*.jsonl", *_columns(tiny_task_file, tmp_path / "ideas.jsonl"))
    assert (code, "would be input of the next start" in output) == (2, True), output


def test_usage_errors_are_one_line(tmp_path: Path, tiny_task_file: Path) -> None:
    path = _archive(tmp_path / "in.jsonl", REPORTS)
    folder = tmp_path / "folder"
    folder.mkdir()
    _archive(folder / "in.jsonl", REPORTS)
    for arguments, message in (
        (
            [path, "--task", tiny_task_file, "--out", tmp_path / "o.jsonl", "--text-column", "bod", "--id-column", "acc"],
            "no row has 'bod'; did you mean 'body'? (set it with --text-column)",
        ),
        ([path, *_columns(tiny_task_file, tmp_path / "absent" / "o.jsonl")], "cannot be written"),
        ([folder, *_columns(tiny_task_file, folder / "o.jsonl")], "lies inside the input folder"),
        ([tmp_path / "no.jsonl", *_columns(tiny_task_file, tmp_path / "o.jsonl")], "does not exist"),
    ):
        code, output = _run(*arguments)
        assert code == 2, output
        assert message in output
        assert "Traceback" not in output

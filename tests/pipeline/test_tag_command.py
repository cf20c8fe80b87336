"""`radtag tag` as its users meet it: what it writes, what it refuses, how it goes on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("word_stages")


@pytest.fixture
def tag(radtag, task_file: Path):
    def run(source: object, out: Path, *options: object):
        return radtag("tag", source, "--task", task_file, "--out", out, "--system", "rules", "--chunk-reports", 8, *options)

    return run


def test_every_report_gets_one_record_in_input_order(tag, many_reports: Path, tmp_path: Path, records_of) -> None:
    result = tag(many_reports, tmp_path / "out")
    assert result.exit_code == 1, result.output
    assert "60 reports: 30 ok, 10 no_findings, 10 failed, 10 rejected" in result.stdout
    records = records_of(tmp_path / "out")
    assert [record["report_id"] for record in records] == [f"r{n}" for n in range(60)]
    assert all((record["entities"] is None) == (record["status"] in ("failed", "rejected")) for record in records)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"ok": 30, "no_findings": 10, "failed": 10, "rejected": 10}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {record["provenance"]["fingerprint"] for record in records} == {run["fingerprint"]}


def test_all_rows_fine_is_exit_0(tag, write_jsonl, tmp_path: Path) -> None:
    assert tag(write_jsonl([{"report_id": "a", "text": "nodule"}]), tmp_path / "out").exit_code == 0


def test_no_report_text_in_messages_or_file_names(tag, write_jsonl, tmp_path: Path) -> None:
    secret = "Hong Gildong"
    rows = [{"report_id": f"r{n}", "text": f"{word} {secret}"} for n, word in enumerate(("BUG", "CANNOT", "NOFLAG", "x\0y"))]
    result = tag(write_jsonl(rows), tmp_path / "out")
    assert result.exit_code == 1
    assert secret not in result.output
    for path in (tmp_path / "out").rglob("*"):
        assert secret not in str(path)
        assert path.is_dir() or secret.encode() not in path.read_bytes()


def test_a_long_report_is_rejected_with_its_length_beside_the_others(tag, write_jsonl, tmp_path: Path, records_of) -> None:
    source = write_jsonl([{"report_id": "long", "text": "nodule " * 150_000}, {"report_id": "short", "text": "nodule"}])
    assert tag(source, tmp_path / "out").exit_code == 1
    long, short = records_of(tmp_path / "out")
    assert (long["status"], long["problem"]) == ("rejected", "text has 1050000 characters; at most 100000 are read")
    assert short["status"] == "ok"


@pytest.mark.parametrize(
    "data",
    [b"", b"report_id,text\n", b"id,text\nr1,a\n", b"report_id,text\nr1,a\nr1,b\n", b"report_id,text\n,a\n"],
)
def test_a_bad_input_is_one_line_and_exit_2_and_nothing_is_written(tag, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    result = tag(tmp_path / "a.csv", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.startswith("radtag: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_second_run_needs_resume(tag, many_reports: Path, tmp_path: Path, parts_of) -> None:
    tag(many_reports, tmp_path / "out")
    before = parts_of(tmp_path / "out")
    again = tag(many_reports, tmp_path / "out")
    assert (again.exit_code, "holds a run; go on with it with --resume" in again.stderr) == (2, True)
    resumed = tag(many_reports, tmp_path / "out", "--resume")
    assert (resumed.exit_code, "60 of them in whole parts already" in resumed.stderr) == (1, True)
    assert "60 reports: 30 ok, 10 no_findings, 10 failed, 10 rejected" in resumed.stdout
    assert parts_of(tmp_path / "out") == before


def test_a_folder_with_other_files_is_refused_and_left_alone(tag, many_reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for options in ((), ("--resume",)):
        result = tag(many_reports, out, *options)
        assert (result.exit_code, "is not empty and holds no run" in result.stderr) == (2, True)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "delete checksum", "empty checksum", "unfinished"])
def test_a_damaged_part_is_found_and_written_again(tag, radtag, many_reports: Path, tmp_path: Path, damage: str, parts_of) -> None:
    out = tmp_path / "out"
    tag(many_reports, out)
    before = parts_of(out)
    part = sorted((out / "parts").glob("*.jsonl"))[3]
    checksum = part.with_name(part.name + ".sha256")
    data = bytearray(part.read_bytes())
    if damage == "cut":
        part.write_bytes(data[:200])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        part.write_bytes(data)
    elif damage == "delete":
        part.unlink()
    elif damage == "delete checksum":
        checksum.unlink()
    elif damage == "empty checksum":
        checksum.write_bytes(b"")
    else:
        part.rename(part.with_name(part.name + ".tmp"))
    verified = radtag("verify", out)
    assert verified.exit_code == 1
    assert part.name in verified.stderr
    assert radtag("export", out).exit_code != 0
    tag(many_reports, out, "--resume")
    assert parts_of(out) == before
    assert radtag("verify", out).exit_code == 0


def test_the_checksums_can_be_checked_with_sha256sum(tag, many_reports: Path, tmp_path: Path) -> None:
    tag(many_reports, tmp_path / "out")
    folder = tmp_path / "out" / "parts"
    names = [path.name for path in folder.glob("*.sha256")]
    assert subprocess.run(["sha256sum", "--check", "--quiet", *names], cwd=folder, check=False).returncode == 0


def test_another_task_file_refuses_to_resume_and_says_what_differs(
    tag, many_reports: Path, task_file: Path, tmp_path: Path, parts_of
) -> None:
    tag(many_reports, tmp_path / "out")
    before = parts_of(tmp_path / "out")
    task_file.write_text(task_file.read_text().replace("Two findings", "2 findings"))
    result = tag(many_reports, tmp_path / "out", "--resume")
    assert result.exit_code == 2
    assert "was begun with other settings: task_file (" in result.stderr
    assert parts_of(tmp_path / "out") == before


def test_another_system_or_limit_refuses_to_resume(tag, many_reports: Path, tmp_path: Path) -> None:
    tag(many_reports, tmp_path / "out")
    assert (
        "system (rules then, published-ru now)"
        in tag(many_reports, tmp_path / "out", "--resume", "--system", "published-rules").stderr
    )
    assert (
        "max_report_chars (100000 then, 50 now)" in tag(many_reports, tmp_path / "out", "--resume", "--max-report-chars", 50).stderr
    )


def test_other_reports_refuse_to_resume(tag, many_reports: Path, sixty_one_reports, tmp_path: Path) -> None:
    tag(many_reports, tmp_path / "out")
    sixty_one_reports()
    result = tag(many_reports, tmp_path / "out", "--resume")
    assert (result.exit_code, "other reports (60 reports then, 61 now)" in result.stderr) == (2, True)


def test_batch_sizes_threads_and_workers_are_not_part_of_the_fingerprint(
    tag, many_reports: Path, tmp_path: Path, records_of
) -> None:
    tag(many_reports, tmp_path / "one", "--threads", 1, "--chunk-reports", 7)
    tag(many_reports, tmp_path / "two", "--threads", 2)
    assert records_of(tmp_path / "one") == records_of(tmp_path / "two")


def test_resume_keeps_the_part_size_of_the_run(tag, radtag, task_file: Path, many_reports: Path, tmp_path: Path) -> None:
    tag(many_reports, tmp_path / "out")
    result = tag(many_reports, tmp_path / "out", "--resume", "--chunk-reports", 9)
    assert (result.exit_code, "was begun with 8 reports a part" in result.stderr) == (2, True)
    options = ("--task", task_file, "--out", tmp_path / "out", "--system", "rules", "--resume")
    assert radtag("tag", many_reports, *options).exit_code == 1


def test_resume_begins_a_run_where_there_is_none(tag, many_reports: Path, tmp_path: Path, records_of) -> None:
    assert tag(many_reports, tmp_path / "new" / "out", "--resume").exit_code == 1
    assert len(records_of(tmp_path / "new" / "out")) == 60


def test_an_output_under_a_file_is_refused(tag, many_reports: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        result = tag(many_reports, out)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_folder_that_cannot_be_written_is_refused(tag, many_reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "sealed"
    out.mkdir(mode=0o500)
    if os.access(out, os.W_OK) and subprocess.run(["chattr", "+i", out], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may write everywhere and chattr is not permitted here")
    try:
        result = tag(many_reports, out)
        assert (result.exit_code, "cannot be written" in result.stderr) == (2, True)
    finally:
        subprocess.run(["chattr", "-i", out], capture_output=True, check=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--system", "two-stge"), "system 'two-stge' is not known; did you mean 'two-stage'?"),
        (("--engine", "locl"), "engine 'locl' is not known; did you mean 'local'?"),
        (("--encoding", "cp94"), "encoding 'cp94' is not known; did you mean 'cp949'?"),
        (("--task", "chest_tc"), "task 'chest_tc' is not known; did you mean 'chest_ct'?"),
        (("--workres", "2"), "No such option: --workres (Possible options: --where, --workers)"),
        (("--workers", "0"), "--workers"),
        (("--gpu-layers", "-2"), "gpu_layers"),
        (("--model", "m.gguf"), "system 'rules' uses no model; --model goes with two-stage or llm"),
        (("--encoder", "w"), "system 'rules' uses no encoder; --encoder goes with two-stage or encoder"),
        (("--text-column", "txt"), "no row has 'txt'; did you mean 'text'? (set it with --text-column)"),
    ],
)
def test_options_that_cannot_be_used_are_one_line_and_exit_2(tag, many_reports, tmp_path: Path, options, message: str) -> None:
    result = tag(many_reports, tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_one_line_and_nothing_is_written(radtag, many_reports: Path, tmp_path: Path) -> None:
    result = radtag("tag", many_reports, "--task", "chest_ct", "--out", tmp_path / "out", "--encoder", tmp_path / "none")
    assert (result.exit_code, "none: holds no encoder weights for task 'chest_ct'" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a model", "a GGUF file begins with"),
        (b"GGUF\3\0\0\0", "8 bytes; a GGUF header has 24, the file is cut"),
        (b"GGUF\3\0\0\0" + b"\1" + b"\0" * 15, "llama.cpp cannot load it"),
        (None, "file does not exist"),
    ],
)
def test_a_model_file_that_cannot_be_used_is_one_line_and_nothing_is_written(
    radtag, monkeypatch, many_reports: Path, tmp_path: Path, data: bytes | None, message: str
) -> None:
    monkeypatch.undo()  # the stages as they ship
    if data is not None:
        (tmp_path / "m.gguf").write_bytes(data)
    options = ("--task", "chest_ct", "--out", tmp_path / "out", "--system", "llm", "--model", tmp_path / "m.gguf")
    result = radtag("tag", many_reports, *options)
    assert (result.exit_code, result.stderr.count("\n"), message in result.stderr) == (2, 1, True), result.stderr
    assert not (tmp_path / "out").exists()


def test_texts_that_cannot_be_read_are_rejected_each_with_its_reason(tag, tmp_path: Path, records_of) -> None:
    rows = (b"r1,", b"r2,   ", b"r3,a\0b", b"r4,\x07\x08", b"r5,nod\xffule", b"r6,nodule")
    (tmp_path / "a.csv").write_bytes(b"report_id,text\n" + b"\n".join(rows) + b"\n")
    assert tag(tmp_path / "a.csv", tmp_path / "out").exit_code == 1
    assert [(record["report_id"], record["status"], record["problem"]) for record in records_of(tmp_path / "out")] == [
        ("r1", "rejected", "text is empty"),
        ("r2", "rejected", "text holds nothing but white space and control characters"),
        ("r3", "rejected", "text holds NUL at character 1"),
        ("r4", "rejected", "text holds nothing but white space and control characters"),
        ("r5", "rejected", "text is not UTF-8 at byte 3"),
        ("r6", "ok", None),
    ]


def test_a_bug_is_told_by_its_frames_and_no_row_is_written(tag, write_jsonl, tmp_path: Path, records_of) -> None:
    source = write_jsonl([{"report_id": "a", "text": "BUG Hong"}, {"report_id": "b", "text": "BUG Gildong"}])
    result = tag(source, tmp_path / "out")
    assert (result.exit_code, "stage 2: ValueError for each of 2 reports" in result.stderr) == (3, True)
    assert "Hong" not in result.output
    assert records_of(tmp_path / "out") == []


def test_another_encoding_is_recorded_and_found_again(tag, radtag, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("report_id,text\nr1,우측 결절 있음\n".encode("cp949"))
    assert tag(tmp_path / "a.csv", tmp_path / "utf8").exit_code == 1
    assert tag(tmp_path / "a.csv", tmp_path / "out", "--encoding", "ms949").exit_code == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["input"]["encoding"] == "cp949"
    assert "[우측] [결절]" in radtag("show", tmp_path / "out").stdout
    assert radtag("verify", tmp_path / "out").exit_code == 0
    assert "was begun with --encoding cp949" in tag(tmp_path / "a.csv", tmp_path / "out", "--resume").stderr


def test_a_bug_breaks_the_run_off_with_its_traceback_and_a_status_of_its_own(
    tag, many_reports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("pipeline.archive.Archive.write_part", broken)
    result = tag(many_reports, tmp_path / "out")
    assert (result.exit_code, "Traceback (most recent call last)" in result.stderr) == (3, True)
    assert result.stderr.splitlines()[-1] == "RuntimeError: no such luck"


def test_resume_names_the_column_option_that_was_forgotten(tag, write_jsonl, tmp_path: Path) -> None:
    row = {"report_id": "r1", "nr": "n1", "text": "nodule", "Report text": "mass", "pat": "p1", "day": "d"}
    source, out = write_jsonl([row]), tmp_path / "out"
    given = {"--id-column": "nr", "--text-column": "Report text", "--patient-column": "pat", "--date-column": "day"}
    assert tag(source, out, *(word for pair in given.items() for word in pair)).exit_code == 0
    for forgotten, value in given.items():
        kept = (word for option, column in given.items() if option != forgotten for word in (option, column))
        result = tag(source, out, "--resume", *kept)
        told = f"{out}: was begun with {forgotten} {shlex.quote(value)}; go on in the same way, or give --out a new folder"
        assert (result.exit_code, result.stderr) == (2, f"radtag: {told}\n")


def test_resume_names_every_way_in_which_the_input_was_read_before(tag, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("report_id,text,pat\nr1,nodule 결절,p1\n".encode("cp949"))
    assert tag(tmp_path / "a.csv", tmp_path / "out", "--encoding", "cp949").exit_code == 0
    stderr = tag(tmp_path / "a.csv", tmp_path / "out", "--resume", "--patient-column", "pat").stderr
    assert "was begun without --patient-column and with --encoding cp949; go on in the same way" in stderr


def test_the_default_column_may_be_named_on_resume(tag, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("report_id,text,patient_id\nr1,nodule,p1\n")
    assert tag(tmp_path / "a.csv", tmp_path / "out").exit_code == 0
    assert tag(tmp_path / "a.csv", tmp_path / "out", "--resume", "--patient-column", "patient_id").exit_code == 0


def test_an_unfinished_file_of_someone_else_is_left_alone(tag, many_reports: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tmp").write_text("mine")
    assert "is not empty and holds no run" in tag(many_reports, tmp_path / "out").stderr
    assert (tmp_path / "out" / "thesis.tmp").read_text() == "mine"


def test_a_start_that_was_killed_before_its_run_file_stood_is_no_run(tag, many_reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "parts").mkdir(parents=True)
    (out / "run.json.tmp").write_text("{")
    (out / "run.lock").write_text("")
    assert tag(many_reports, out).exit_code == 1
    assert not (out / "run.json.tmp").exists()


def test_records_inside_the_input_folder_are_refused(tag, many_reports: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    many_reports.rename(tmp_path / "in" / "reports.jsonl")
    result = tag(tmp_path / "in", tmp_path / "in" / "out")
    assert (result.exit_code, "lies inside the input folder" in result.stderr) == (2, True)
    assert not (tmp_path / "in" / "out").exists()


@pytest.mark.parametrize("pattern", ["data/**/*.jsonl", "data/*/parts/*", "./data/o*/*.json"])
def test_records_that_would_fit_the_input_pattern_are_refused(
    tag, many_reports: Path, tmp_path: Path, monkeypatch, pattern
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    many_reports.rename(tmp_path / "data" / "reports.jsonl")
    for given in (pattern, tmp_path / pattern):
        result = tag(given, Path("data/out"))
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert "data/out: its records would fit the input pattern" in result.stderr
        assert not (tmp_path / "data" / "out").exists()
    assert tag("data/*.jsonl", tmp_path / "data" / "out").exit_code == 1


def test_a_row_of_which_no_cell_can_be_trusted_is_rejected_and_stays_so(tag, radtag, tmp_path: Path, records_of, parts_of) -> None:
    row = "Nodule in RUL, no effusion,r1,p1\n"
    (tmp_path / "a.csv").write_text("text,report_id,patient_id\n" + row * 2 + "nodule,r2,p2\n(1 rows affected)\n")
    out = tmp_path / "out"
    result = tag(tmp_path / "a.csv", out)
    assert result.exit_code == 1, result.output
    records = records_of(out)
    assert [(record["report_id"], record["status"], record.get("patient_id")) for record in records] == [
        ("a.csv row 1", "rejected", None),
        ("a.csv row 2", "rejected", None),
        ("r2", "ok", "p2"),
        ("a.csv row 4", "rejected", None),
    ]
    assert records[0]["problem"].startswith("row has 4 fields, the header 3")
    assert "effusion" not in result.output + json.dumps(records)
    assert radtag("verify", out).exit_code == 0
    before = parts_of(out)
    assert tag(tmp_path / "a.csv", out, "--resume").exit_code == 1
    assert parts_of(out) == before
    shown = radtag("show", out, "--status", "rejected").stdout
    assert all(f"a.csv row {number}" in shown for number in (1, 2, 4))
    assert "effusion" not in shown


def test_names_that_no_disk_takes_are_one_line(tag, many_reports: Path, tmp_path: Path) -> None:
    for source, out in ((many_reports, tmp_path / ("x" * 300)), (tmp_path / ("x" * 300), tmp_path / "out")):
        result = tag(source, out)
        assert (result.exit_code, result.stderr.count("\n"), "name too long" in result.stderr) == (2, 1, True)


def test_a_glob_is_found_again_from_another_folder(tag, radtag, many_reports: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tag("rep*.jsonl", tmp_path / "out")
    monkeypatch.chdir("/")
    assert radtag("verify", tmp_path / "out").exit_code == 0


def test_the_rules_read_an_archive_end_to_end(many_reports: Path, tmp_path: Path, records_of) -> None:
    """In a process of its own, with the stages as they ship."""
    command = [sys.executable, "-m", "pipeline.cli", "tag", str(many_reports), "--task", "chest_ct", "--system", "rules"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1, done.stderr
    nodule = records_of(tmp_path / "out")[0]
    assert (nodule["status"], nodule["relations"][0]["value"]) == ("ok", "right_lung")

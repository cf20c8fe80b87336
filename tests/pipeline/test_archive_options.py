"""--where, --limit, --retry-failed, --metrics, repeated texts, patient and date: what belongs to a run and to its records."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.contracts import EntityFlags, Reading, Report, Unread
from pipeline import tagging
from pipeline.archive import Archive
from pipeline.settings import settings
from pipeline.sources import Columns, FileSource, SourceError
from pipeline.summary import Summary
from pipeline.tagging import TagRequest, tag_archive

ROOT = Path(__file__).parents[2]
METRIC = re.compile(r'radtag_[a-z_]+\{task="[^"]*",system="[^"]*"(?:,[a-z]+="[^"]*")?\} -?[0-9.]+(?:e[+-]?[0-9]+)?')


class Silent:
    def begin(self, *, n_reports: int, n_done: int) -> None: ...
    def advance(self, n_reports: int) -> None: ...
    def warn(self, warning: str) -> None: ...


@pytest.fixture
def tag(radtag, task_file: Path):
    def start(source: object, out: Path, *options: object):
        return radtag("tag", source, "--task", task_file, "--out", out, "--system", "rules", "--chunk-reports", 8, *options)

    return start


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """One archive three times: as CSV, JSON Lines and Parquet."""
    rows = [
        {
            "report_id": f"r{n}",
            "text": f"nodule {n}",
            "modality": ("CT", "MR", "US", None)[n % 4],
            "age": n,
            "date": f"2020-01-{n + 1:02}",
        }
        for n in range(12)
    ]
    folder = tmp_path / "scans"
    folder.mkdir()
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder


def ids(records: Sequence[dict[str, object]]) -> list[object]:
    return [record["report_id"] for record in records]


@pytest.mark.usefixtures("word_stages")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["modality = CT"], [0, 4, 8]),
        (["modality in CT, MR", "age >= 9"], [9]),
        (["modality is empty"], [3, 7, 11]),
        (["modality is not empty", "age<3"], [0, 1, 2]),
        (["modality != CT", "date >= 2020-01-10"], [9, 10]),
    ],
)
def test_only_rows_that_fit_belong_to_the_run(
    tag, radtag, scans: Path, tmp_path: Path, records_of, name: str, conditions: list[str], kept: list[int]
) -> None:
    out = tmp_path / "out"
    options = [word for condition in conditions for word in ("--where", condition)]
    assert tag(scans / name, out, *options).exit_code == 0
    assert ids(records_of(out)) == [f"r{n}" for n in kept]
    assert radtag("verify", out).exit_code == 0
    assert radtag("show", out).stdout.count("ok") == len(kept)
    assert tag(scans / name, out, "--resume", *options).exit_code == 0
    other = tag(scans / name, out, "--resume")
    assert (other.exit_code, f"was begun with --where {conditions[0]}" in other.stderr) == (2, True)


@pytest.mark.usefixtures("word_stages")
def test_a_limit_takes_the_first_reports_that_fit(tag, radtag, scans: Path, tmp_path: Path, records_of) -> None:
    out = tmp_path / "out"
    assert tag(scans / "a.csv", out, "--where", "modality = CT", "--limit", 2).exit_code == 0
    assert ids(records_of(out)) == ["r0", "r4"]
    assert radtag("verify", out).exit_code == 0
    assert (
        "was begun with --limit 2; go on in the same way"
        in tag(scans / "a.csv", out, "--resume", "--where", "modality = CT").stderr
    )


@pytest.mark.usefixtures("word_stages")
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("modality = XA", "no row fits --where"),
        ("modalty = CT", "'modalty'; did you mean 'modality'? (set it with --where)"),
        ("modality CT", "--where 'modality CT': is no condition"),
    ],
)
def test_a_condition_that_cannot_be_used_is_one_line(tag, scans: Path, tmp_path: Path, condition: str, message: str) -> None:
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        result = tag(scans / name, tmp_path / "out", "--where", condition)
        assert (result.exit_code, result.stderr.count("\n"), message in result.stderr) == (2, 1, True), result.stderr


@pytest.mark.usefixtures("word_stages")
@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("age >= 18", "a.csv: row 2: column 'age' holds no number, and 'age >= 18' compares numbers"),
        ("day >= 2021", "a.csv: row 1: column 'day' holds a date spelled YYYY-MM-DD or YYYYMMDD, and 'day >= 2021' has another"),
    ],
)
def test_a_cell_that_cannot_be_compared_is_one_line_before_anything_is_written(
    tag, tmp_path: Path, condition: str, message: str
) -> None:
    (tmp_path / "a.csv").write_text("report_id,age,day,text\nr1,19,20191231,nodule\nr2,045Y,20200101,mass\n")
    result = tag(tmp_path / "a.csv", tmp_path / "out", "--where", condition)
    assert (result.exit_code, result.stderr.count("\n"), message in result.stderr) == (2, 1, True), result.stderr
    assert "045Y" not in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("word_stages")
def test_a_row_that_cannot_be_trusted_is_rejected_and_not_filtered_away(tag, tmp_path: Path, records_of) -> None:
    (tmp_path / "a.csv").write_text("report_id,modality,text\nr1,CT,nodule\nr2,nodule\nr3,MR,mass\n")
    tag(tmp_path / "a.csv", tmp_path / "out", "--where", "modality = CT")
    assert [(record["report_id"], record["status"]) for record in records_of(tmp_path / "out")] == [
        ("r1", "ok"),
        ("a.csv row 2", "rejected"),
    ]


def test_retry_failed_reads_the_failed_reports_and_no_others(
    tag, radtag, moody, many_reports: Path, tmp_path: Path, parts_of
) -> None:
    out = tmp_path / "out"
    assert tag(many_reports, out).exit_code == 1
    before = parts_of(out)
    assert tag(many_reports, out, "--resume").exit_code == 1
    assert parts_of(out) == before  # without the option the failed stay failed
    moody.down, moody.seen = False, []
    result = tag(many_reports, out, "--retry-failed")
    assert "60 reports: 30 ok, 20 no_findings, 0 failed, 10 rejected" in result.stdout
    assert sorted(moody.seen) == sorted(f"CANNOT be read #{n}" for n in range(4, 60, 6))
    assert radtag("verify", out).exit_code == 0
    tag(many_reports, tmp_path / "undisturbed")
    assert parts_of(out) == parts_of(tmp_path / "undisturbed")


def test_parts_that_another_run_ends_before_the_lock_is_held_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, moody, many_reports: Path, task_file: Path, tmp_path: Path, parts_of
) -> None:
    out, later = tmp_path / "out", tmp_path / "later"
    tagged(many_reports, task_file, out)
    whole = parts_of(out)
    later.mkdir()
    for path in sorted((out / "parts").iterdir())[6:]:
        path.rename(later / path.name)
    opened = Archive.opened

    def after_the_other_run(*arguments: object, **named: object) -> object:
        for path in later.iterdir():
            path.rename(out / "parts" / path.name)
        return opened(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Archive, "opened", after_the_other_run)
    standing = {path.name: path.stat().st_ino for folder in (out / "parts", later) for path in folder.iterdir()}
    moody.seen = []
    summary = tagged(many_reports, task_file, out, resume=True)
    assert (moody.seen, summary.n_resumed) == ([], 60)
    assert parts_of(out) == whole
    assert {path.name: path.stat().st_ino for path in (out / "parts").iterdir()} == standing


def test_what_fails_again_stays_failed_and_keeps_its_bytes(tag, moody, many_reports: Path, tmp_path: Path, parts_of) -> None:
    out = tmp_path / "out"
    tag(many_reports, out)
    before = parts_of(out)
    assert "10 failed" in tag(many_reports, out, "--retry-failed").stdout
    assert parts_of(out) == before


@pytest.fixture
def repeated_rows(rows_of: Callable[[int], list[dict[str, object]]]) -> list[dict[str, object]]:
    """200 reports of 12 texts, two of which cannot be read."""
    texts = [str(row["text"]) for row in rows_of(12)]
    return [
        {"report_id": f"r{n}", "text": texts[(n * n) % 12], "patient_id": f"p{n % 5}", "date": "2020-02-03"} for n in range(200)
    ]


def tagged(source: Path, task_file: Path, out: Path, **changes: object) -> Summary:
    request = TagRequest(
        str(source),
        Columns(),
        settings(task=str(task_file), system="rules"),
        out,
        chunk_reports=8,
        **changes,  # type: ignore[arg-type]
    )
    return tag_archive(request, Silent())


def test_a_text_is_read_once_an_archive_and_no_byte_changes(
    moody, repeated_rows, write_jsonl, task_file: Path, tmp_path: Path, parts_of
) -> None:
    moody.down = False
    source = write_jsonl(repeated_rows)
    once = tagged(source, task_file, tmp_path / "once")
    readable = {str(row["text"]) for row in repeated_rows if str(row["text"]).strip()}
    assert sorted(moody.seen) == sorted(readable)
    moody.seen = []
    always = tagged(source, task_file, tmp_path / "always", tag_once=False)
    assert len(moody.seen) > 3 * len(readable)
    assert parts_of(tmp_path / "once") == parts_of(tmp_path / "always")
    assert once.n_read < always.n_read == 200
    assert once.n_repeated == 200 - len({str(row["text"]) for row in repeated_rows})


def test_a_failed_record_is_never_taken_over(moody, write_jsonl, task_file: Path, tmp_path: Path) -> None:
    source = write_jsonl([{"report_id": f"r{n}", "text": "CANNOT be read"} for n in range(24)])
    tagged(source, task_file, tmp_path / "out")
    assert moody.seen == ["CANNOT be read"] * 3  # once a part of eight


def test_the_order_of_the_input_changes_no_record(
    moody, repeated_rows, write_jsonl, task_file: Path, tmp_path: Path, records_of
) -> None:
    tagged(write_jsonl(repeated_rows), task_file, tmp_path / "one")
    tagged(write_jsonl(repeated_rows[::-1]), task_file, tmp_path / "two")
    one, two = ({record["report_id"]: record for record in records_of(tmp_path / name)} for name in ("one", "two"))
    assert one == two


@pytest.mark.usefixtures("word_stages")
def test_patient_and_date_stand_in_records_where_the_input_has_them(tag, radtag, tmp_path: Path, records_of) -> None:
    (tmp_path / "a.csv").write_text("report_id,text,patient_id,date\nr1,nodule,p1,2020-01-02\nr2,nodule,,\n")
    assert tag(tmp_path / "a.csv", tmp_path / "out").exit_code == 0
    first, second = records_of(tmp_path / "out")
    assert (first["patient_id"], first["study_date"]) == ("p1", "2020-01-02")
    assert not {"patient_id", "study_date"} & set(second)
    radtag("export", tmp_path / "out", "--format", "parquet", "--out", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [(row["patient_id"], row["study_date"]) for row in table] == [("p1", "2020-01-02"), (None, None)]
    rows = list(csv.DictReader(radtag("export", tmp_path / "out", "--format", "csv").stdout.splitlines()))
    assert [(row["patient_id"], row["study_date"]) for row in rows] == [("p1", "2020-01-02"), ("", "")]


@pytest.mark.usefixtures("word_stages")
def test_another_date_is_another_input(tag, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("report_id,text,date\nr1,nodule,2020-01-02\n")
    tag(tmp_path / "a.csv", tmp_path / "out")
    (tmp_path / "a.csv").write_text("report_id,text,date\nr1,nodule,2021-01-02\n")
    assert "was begun with other reports" in tag(tmp_path / "a.csv", tmp_path / "out", "--resume").stderr


@pytest.mark.usefixtures("word_stages")
def test_a_patient_id_that_cannot_be_used_rejects_its_row_alone(tag, tmp_path: Path, records_of) -> None:
    (tmp_path / "a.csv").write_bytes(b"report_id,text,patient_id\nr1,nodule,p\xff\nr2,nodule,p2\n")
    assert tag(tmp_path / "a.csv", tmp_path / "out").exit_code == 1
    assert [(record["status"], record["problem"]) for record in records_of(tmp_path / "out")] == [
        ("rejected", "patient id is not UTF-8"),
        ("ok", None),
    ]


@pytest.mark.usefixtures("word_stages")
def test_metrics_are_prometheus_text_of_the_summary(tag, many_reports: Path, tmp_path: Path) -> None:
    tag(many_reports, tmp_path / "out", "--metrics", tmp_path / "radtag.prom")
    lines = (tmp_path / "radtag.prom").read_text().splitlines()
    values = [line for line in lines if not line.startswith("#")]
    assert [line for line in values if not METRIC.fullmatch(line)] == []
    assert 'radtag_records{task="tiny",system="rules",status="failed"} 10' in values
    assert 'radtag_run_finished{task="tiny",system="rules"} 1' in values
    named = {line.split("{")[0] for line in values}
    assert (
        named
        == {line.split()[2] for line in lines if line.startswith("# TYPE")}
        == {line.split()[2] for line in lines if "HELP" in line}
    )
    refused = tag(many_reports, tmp_path / "two", "--metrics", tmp_path / "nowhere" / "radtag.prom")
    assert (refused.exit_code, (tmp_path / "two").exists()) == (2, False)


@pytest.mark.usefixtures("word_stages")
def test_the_summary_says_what_the_run_took(tag, many_reports: Path, tmp_path: Path) -> None:
    result = tag(many_reports, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["n_read"], summary["finished"], summary["warnings"]) == (60, True, [])
    assert set(summary["step_seconds"]) == {"check_input", "load", "tag", "write"}
    assert "read     60 reports in this start" in result.stdout


def test_tokens_are_summed_over_the_stages_that_count_them(moody, many_reports, task_file: Path, tmp_path: Path) -> None:
    def relate(reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        moody.token_counts["read"] += 3 * len(reports)
        return plain(reports, flags)

    plain = moody.relate
    moody.token_counts = {"read": 100}  # what was read before does not count
    moody.relate = relate
    assert tagged(many_reports, task_file, tmp_path / "out").tokens == {"read": 3 * 50}


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda rows: [*rows[:30], *rows[31:]], "input changed"), (lambda rows: rows[:24], "input became shorter")],
)
def test_an_input_that_changes_while_it_is_tagged_ends_the_run_and_whole_parts_stay(
    moody, rows_of, write_jsonl, task_file: Path, tmp_path: Path, parts_of, change, message: str
) -> None:
    source = write_jsonl(rows_of(60))
    read = moody.relate

    def relate(reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        new = tmp_path / "new.jsonl"
        new.write_text("".join(json.dumps(row) + "\n" for row in change(rows_of(60))), encoding="utf-8")
        new.replace(source)
        return read(reports, flags)

    class Reopening(FileSource):
        """Reads a file row by row from where it lies now: a small file would be read ahead whole."""

        def reports(self) -> Iterator[Report]:
            for place in count():
                try:
                    yield next(islice(FileSource(self.files, self.columns).reports(), place, None))
                except StopIteration:
                    return

    moody.relate = relate
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setattr(tagging, "FileSource", Reopening)
    try:
        with pytest.raises(SourceError, match=message):
            tagged(source, task_file, tmp_path / "out")
    finally:
        monkeypatched.undo()
    moody.relate = read
    write_jsonl(rows_of(60))
    standing = parts_of(tmp_path / "out")
    assert len(standing) >= 2
    tagged(source, task_file, tmp_path / "out", resume=True)
    tagged(source, task_file, tmp_path / "undisturbed")
    assert standing.items() <= parts_of(tmp_path / "out").items()
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "undisturbed")


@pytest.mark.llm
@pytest.mark.usefixtures("word_stages")
def test_gpu_layers_without_a_gpu_build_are_told_once(
    radtag, monkeypatch, many_reports: Path, task_file: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(tagging, "_offloads", lambda: False)
    options = ("--task", task_file, "--out", tmp_path / "out", "--system", "llm", "--gpu-layers", "-1")
    result = radtag("tag", many_reports, *options)
    assert result.stderr.count("--gpu-layers -1 has no effect: llama.cpp is built without GPU offload") == 1
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["warnings"]) == 1


def test_memory_does_not_grow_with_the_archive(rows_of, write_jsonl: Callable[..., Path], task_file: Path, tmp_path: Path) -> None:
    """In processes of their own; the same ratio at 1,000 and 100,000 reports is in docs/ARCHIVES.md."""
    peaks = []
    for n_reports in (250, 4000):
        source = write_jsonl(rows_of(n_reports), f"{n_reports}.jsonl")
        out = tmp_path / str(n_reports)
        command = [
            sys.executable,
            Path(__file__).with_name("slow_radtag.py"),
            "0",
            "tag",
            source,
            "--task",
            task_file,
            "--out",
            out,
        ]
        done = subprocess.run(
            [*map(str, command), "--system", "rules"], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, check=False
        )
        assert done.returncode == 1, done.stderr
        peaks.append(json.loads((out / "summary.json").read_text())["peak_memory_mib"])
    assert peaks[1] <= 1.2 * peaks[0], peaks

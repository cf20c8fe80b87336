"""`show`, `export`, `verify`, `tasks`, `doctor`, and the top of the command line."""

from __future__ import annotations

import csv
import io
import json
import resource
import statistics
import subprocess
import sys
from importlib.metadata import EntryPoint, PackageNotFoundError
from pathlib import Path

import duckdb
import pytest

from configs.contracts import EntityFinding, Relation, Span, TaggedReport
from pipeline.records import read_records
from pipeline.show import printable, snippet
from pipeline.sinks import CSV_COLUMNS, csv_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_folder(radtag, word_stages, many_reports: Path, task_file: Path, tmp_path: Path) -> Path:
    radtag("tag", many_reports, "--task", task_file, "--out", tmp_path / "out", "--system", "rules", "--chunk-reports", 8)
    return tmp_path / "out"


def test_show_says_where_each_relation_stands(radtag, run_folder: Path) -> None:
    result = radtag("show", run_folder, "--limit", 6)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "r0 ok nodule → right side (0.99) “A [nodule] in the [right] lung. #0”" in lines
    assert "r2 ok nodule → right side (0.99) “[우측] [결절] 있음. #2”" in lines
    assert "r3 ok mass (0.12) “[mass] on the left #3”" in lines
    assert "r4 failed answer is cut after 12 tokens" in lines
    assert lines[-1].startswith("the first 6 records")


def test_show_can_pick_a_status(radtag, run_folder: Path) -> None:
    result = radtag("show", run_folder, "--status", "rejected")
    assert result.stdout.count("rejected") == 10
    assert "nothing but white space" in result.stdout
    assert radtag("show", run_folder, "--status", "faild").stderr == "radtag: status 'faild' is not known; did you mean 'failed'?\n"


def test_show_without_the_input_gives_positions(radtag, run_folder: Path, many_reports: Path, tmp_path: Path) -> None:
    many_reports.rename(tmp_path / "moved.jsonl")
    result = radtag("show", run_folder, "--limit", 1)
    assert (result.exit_code, "at 2–8, 16–21" in result.stdout) == (0, True)
    result = radtag("show", run_folder, "--limit", 1, "--input", tmp_path / "moved.jsonl")
    assert "[nodule] in the [right]" in result.stdout
    assert radtag("show", run_folder, "--input", tmp_path / "nowhere.jsonl").exit_code == 2


def test_show_never_marks_a_text_that_has_changed(radtag, run_folder: Path, many_reports: Path) -> None:
    many_reports.write_text(many_reports.read_text("utf-8").replace("A nodule", "Another nodule"), encoding="utf-8")
    assert "at 2–8, 16–21" in radtag("show", run_folder, "--limit", 1).stdout


@pytest.mark.parametrize(
    ("text", "spans", "shown"),
    [
        ("nodule", [(0, 6)], "[nodule]"),
        ("right\n  nodule", [(0, 5), (7, 14)], "[right] [nodule]"),
        ("a 8 mm ground-glass nodule in RUL", [(20, 26), (30, 33)], "a 8 mm ground-glass [nodule] in [RUL]"),
        ("nodule " + "word " * 20 + "RUL", [(0, 6), (107, 110)], "[nodule] word word word word … word word word word [RUL]"),
        ("stable 8 mm, ground-glass nodule.", [(26, 32)], "…8 mm, ground-glass [nodule]."),
        ("nodule in RUL", [(10, 13), (0, 6)], "[nodule] in [RUL]"),
        ("pleural effusion", [(0, 16), (0, 7)], "[pleural effusion]"),
    ],
)
def test_snippets(text: str, spans: list[tuple[int, int]], shown: str) -> None:
    pieces = snippet(text, [Span(*span) for span in spans])
    assert "".join(f"[{piece.strip()}]" if marked else piece for piece, marked in pieces) == shown


def test_a_report_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mred\u202eb\u200b") == "a [31mred b "


def test_export_jsonl_is_the_part_files_in_one(radtag, run_folder: Path, tmp_path: Path) -> None:
    expected = b"".join(path.read_bytes() for path in sorted((run_folder / "parts").glob("*.jsonl")))
    assert radtag("export", run_folder).stdout_bytes == expected
    assert radtag("export", run_folder, "--out", tmp_path / "all.jsonl").exit_code == 0
    assert (tmp_path / "all.jsonl").read_bytes() == expected
    assert not list(tmp_path.glob(".*tmp"))


def test_export_csv_lets_no_report_vanish(radtag, run_folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(radtag("export", run_folder, "--format", "csv").stdout)))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert {row["report_id"] for row in rows} == {f"r{n}" for n in range(60)}
    by_id = {row["report_id"]: row for row in rows}
    assert [by_id["r0"][name] for name in ("status", "entity", "value", "entity_start", "entity_end")] == [
        "ok",
        "nodule",
        "right_side",
        "2",
        "8",
    ]
    assert [by_id["r3"][name] for name in ("status", "entity", "value")] == ["ok", "mass", ""]
    assert [by_id["r4"][name] for name in ("status", "entity", "problem")] == ["failed", "", "answer is cut after 12 tokens"]
    assert by_id["r5"]["status"] == "rejected"


def test_csv_has_a_row_for_every_relation_and_every_entity_without_one() -> None:
    record = TaggedReport(
        "r",
        "t",
        "ok",
        (EntityFinding("nodule", True, 0.5), EntityFinding("mass", True, None, (Span(1, 2),)), EntityFinding("ggo", False)),
        (Relation("nodule", "rul"), Relation("nodule", "lll", 0.25, Span(3, 4), Span(5, 6))),
        (),
        None,
        {"fingerprint": "f"},
    )
    assert [row[3:11] for row in csv_rows(record)] == [
        ["nodule", 0.5, "rul", None, None, None, None, None],
        ["nodule", 0.5, "lll", 0.25, 3, 4, 5, 6],
        ["mass", None, None, None, 1, 2, None, None],
    ]
    assert all(len(row) == len(CSV_COLUMNS) for row in csv_rows(record))


def test_export_parquet_can_be_queried(radtag, run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    assert radtag("export", run_folder, "--format", "parquet", "--out", path).exit_code == 0
    assert list(read_records(path)) == list(read_records(run_folder))
    query = f"select r.subject, r.value, count(*) from (select unnest(relations) r from '{path}') group by all"
    assert duckdb.sql(query).fetchall() == [("nodule", "right_side", 20)]


def test_parquet_goes_to_a_file(radtag, run_folder: Path, tmp_path: Path) -> None:
    assert radtag("export", run_folder, "--format", "parquet").stderr == "radtag: Parquet goes to a file: give --out FILE\n"
    assert "did you mean 'parquet'?" in radtag("export", run_folder, "--format", "parket").stderr
    assert radtag("export", run_folder, "--out", tmp_path).exit_code == 2
    assert "cannot be written" in radtag("export", run_folder, "--out", tmp_path / "no" / "folder.jsonl").stderr


def test_export_leaves_a_file_that_exists_alone_unless_it_is_told_to_replace_it(radtag, run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    out.write_text("mine")
    refused = radtag("export", run_folder, "--format", "csv", "--out", out)
    assert (refused.exit_code, refused.stderr) == (2, f"radtag: {out}: exists already; a new file is expected, or --replace\n")
    assert out.read_text() == "mine"
    assert radtag("export", run_folder, "--format", "csv", "--out", out, "--replace").exit_code == 0
    assert out.read_bytes() == radtag("export", run_folder, "--format", "csv").stdout_bytes


@pytest.mark.parametrize("options", [(), ("--replace",)])
def test_export_never_writes_over_the_input_or_the_run(
    radtag, run_folder: Path, many_reports: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "link.jsonl").symlink_to(many_reports)
    part = sorted((run_folder / "parts").iterdir())[0]
    places = (many_reports, tmp_path / "link.jsonl", run_folder / "run.json", part, part.with_name("new.jsonl"), Path("/dev/null"))
    before = {place: place.read_bytes() if place.is_file() else None for place in places}
    for place in places:
        refused = radtag("export", run_folder, "--out", place, *options)
        assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert {place: place.read_bytes() if place.is_file() else None for place in places} == before
    assert radtag("verify", run_folder).exit_code == 0


def test_export_of_an_unfinished_run_says_so(radtag, run_folder: Path) -> None:
    last = sorted((run_folder / "parts").glob("*.jsonl"))[-1]
    last.unlink()
    last.with_name(last.name + ".sha256").unlink()
    result = radtag("export", run_folder)
    assert (result.exit_code, "56 of 60 reports are tagged" in result.stderr) == (1, True)


@pytest.mark.parametrize("command", ["show", "export"])
def test_a_part_that_is_not_whole_is_one_line_and_never_shown(radtag, run_folder: Path, command: str) -> None:
    first = sorted((run_folder / "parts").glob("*.jsonl"))[0]
    first.write_bytes(first.read_bytes().replace(b'"nodule"', b'"module"', 1))
    for message in ("is damaged", "is missing"):
        result = radtag(command, run_folder)
        assert (result.exit_code, result.stdout, message in result.stderr) == (2, "", True)
        first.unlink(missing_ok=True)
    (run_folder / "parts" / "part-of-mine.jsonl").write_text("")
    assert "parts/part-of-mine is no part file; remove it" in radtag(command, run_folder).stderr


@pytest.mark.parametrize("command", ["tasks", "export"])
def test_a_terminal_without_korean_or_arrows_ends_no_command(run_folder: Path, command: str) -> None:
    arguments = [command, str(run_folder)] if command == "export" else [command]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if command == "export":
        assert done.stdout == b"".join(path.read_bytes() for path in sorted((run_folder / "parts").glob("*.jsonl")))


def test_verify_passes_a_whole_run(radtag, run_folder: Path) -> None:
    result = radtag("verify", run_folder)
    assert (result.exit_code, result.stdout) == (0, "60 records of 60 reports in 8 whole parts, 0 problems\n")


def with_new_checksum(part: Path, data: bytes) -> None:
    import hashlib

    part.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    part.with_name(part.name + ".sha256").write_text(f"# 8 records\n{digest}  {part.name}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "report 'r7' is missing"),
        (lambda lines: [*lines, lines[0]], "report 'r0' stands more than once"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "records stand in another order than the reports"),
        (lambda lines: [lines[0].replace(b'"r0"', b'"r99"'), *lines[1:]], "report 'r0' is missing"),
        (
            lambda lines: [lines[0].replace(b'"fingerprint":"', b'"fingerprint":"0'), *lines[1:]],
            "report 'r0' has another fingerprint",
        ),
        (lambda lines: [b"{}\n", *lines[1:]], "record has no 'report_id'"),
    ],
)
def test_verify_finds_what_checksums_cannot(radtag, run_folder: Path, change, message: str) -> None:
    part = sorted((run_folder / "parts").glob("*.jsonl"))[0]
    with_new_checksum(part, b"".join(change(part.read_bytes().splitlines(keepends=True))))
    result = radtag("verify", run_folder)
    assert result.exit_code == 1
    assert message in result.stderr


def test_verify_names_parts_that_do_not_belong_and_inputs_that_are_gone(radtag, run_folder: Path, many_reports: Path) -> None:
    (run_folder / "parts" / "part-000099-0123456789abcdef.jsonl").write_text("")
    assert "part-000099-0123456789abcdef is no part of this input" in radtag("verify", run_folder).stderr
    many_reports.unlink()
    result = radtag("verify", run_folder)
    assert (result.exit_code, "input cannot be compared" in result.stderr) == (1, True)


def test_parts_that_a_stopped_run_has_not_written_are_not_finished_and_no_problem(radtag, run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()  # as a run that was killed leaves it
    absent, torn, begun, *_ = sorted((run_folder / "parts").glob("*.jsonl"))
    absent.unlink()
    torn.write_bytes(torn.read_bytes()[:50])
    begun.rename(begun.with_name(begun.name + ".tmp"))
    for part in (absent, torn, begun):
        part.with_name(part.name + ".sha256").unlink()
    result = radtag("verify", run_folder)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "36 records of 60 reports in 5 whole parts, 0 problems" in result.stdout
    assert "not finished yet: 3 parts, 24 reports; go on with 'radtag tag … --resume'" in result.stdout


def test_a_written_part_that_is_gone_or_changed_is_a_problem_in_a_stopped_run_too(radtag, run_folder: Path) -> None:
    (run_folder / "summary.json").unlink()
    gone, flipped, *_ = sorted((run_folder / "parts").glob("*.jsonl"))
    gone.unlink()
    flipped.write_bytes(flipped.read_bytes().replace(b"r8", b"r9", 1))
    result = radtag("verify", run_folder)
    assert result.exit_code == 1
    assert f"{gone.name} is missing" in result.stderr
    assert f"{flipped.name} is damaged" in result.stderr


@pytest.mark.parametrize("command", ["show", "export", "verify"])
def test_a_folder_without_a_run_is_one_line(radtag, tmp_path: Path, command: str) -> None:
    assert radtag(command, tmp_path / "none").stderr == f"radtag: {tmp_path}/none: does not exist\n"
    (tmp_path / "run.json").write_text('{"radtag_run": 1}')
    result = radtag(command, tmp_path)
    assert (result.exit_code, "is no run file: fingerprint: Field required" in result.stderr) == (2, True)


def test_tasks_lists_keys_values_and_steps(radtag) -> None:
    result = radtag("tasks")
    assert result.exit_code == 0
    for words in (
        "chest_ct: ",
        "entity    nodule",
        "value     bll                         BLL = rll + lll",
        "brain_mri: ",
        "step      ",
    ):
        assert words in result.stdout


def test_doctor_says_what_is_missing(radtag, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import stage1_encoder.encoder
    import stage2_relations.model_file

    def no_model() -> Path:
        raise stage2_relations.model_file.ModelFileError("package is not installed")

    monkeypatch.setattr(stage1_encoder.encoder, "default_weights", lambda name: tmp_path / name)
    monkeypatch.setattr(stage2_relations.model_file, "default_model", no_model)
    monkeypatch.setenv("RADTAG_CACHE", str(tmp_path / "cache"))
    result = radtag("doctor")
    assert result.exit_code == 1
    for words in (
        "MISSING weights chest_ct",
        "MISSING model",
        "ok      llama-cpp-python",
        "GPU offload",
        f"{tmp_path}/cache (does not exist yet)",
    ):
        assert words in result.stdout
    assert "radtag: 3 of these must be put right" in result.stderr


def test_doctor_outlives_a_library_that_is_not_installed(radtag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setitem(sys.modules, "stage1_encoder.encoder", None)
    result = radtag("doctor")
    assert result.exit_code == 1
    assert "MISSING llama.cpp           cannot be loaded: " in result.stdout
    assert "MISSING weights chest_ct    cannot be checked: " in result.stdout


def test_doctor_says_which_extras_are_there_and_how_to_get_the_others(radtag, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("ray", "peft"):
            raise PackageNotFoundError(name)
        return "9.8.7"

    monkeypatch.setattr("pipeline.doctor.metadata.version", version)
    found = radtag("doctor").stdout
    assert "–       extra ray           ray is not installed; radtag tag --engine ray needs it: pip install 'radtag[ray]'" in found
    assert "–       extra train         peft is not installed; radtag train needs it: pip install 'radtag[train]'" in found
    assert "ok      extra bench         langextract 9.8.7" in found


def test_every_extra_of_doctor_is_one_of_the_project() -> None:
    import tomllib

    from pipeline.doctor import EXTRAS

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, (_, distributions) in EXTRAS.items():
        assert all(any(line.startswith(name) for line in known[extra]) for name in distributions), extra
    assert set(EXTRAS) == set(known) - {"dev"}


def test_the_version_is_the_projects(radtag) -> None:
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert radtag("--version").stdout == f"radtag {version}\n"


def test_an_unknown_command_names_the_nearest(radtag) -> None:
    result = radtag("exprot")
    assert (result.exit_code, result.stderr) == (2, "radtag: No such command 'exprot'. Did you mean 'export'?\n")


def test_commands_of_other_packages_are_listed_without_loading_and_run_when_called(radtag, monkeypatch, tmp_path: Path) -> None:
    body = "import typer\napp = typer.Typer()\n\n@app.command()\ndef go(n: int) -> None:\n    print(n + 1)\n"
    (tmp_path / "later_command.py").write_text(f'"""`radtag later`: comes late. More."""\n{body}')
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("later", "later_command:app", "radtag.commands")
    monkeypatch.setattr("pipeline.command_group.entry_points", lambda group: [entry])
    assert "later Comes late." in " ".join(radtag("--help").stdout.split())
    assert "later_command" not in sys.modules
    assert radtag("later", 41).stdout == "42\n"
    assert radtag("later", "x").exit_code == 2
    sys.modules.pop("later_command")


def test_help_answers_in_under_a_third_of_a_second() -> None:
    """Median of five, in processor time, which a busy machine stretches less than the clock: 0.10 s, 0.2 s by the clock."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "pipeline.cli", "--help"], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(seconds) < 0.3


def test_help_loads_nothing_heavy() -> None:
    code = """
import json, sys
from pipeline.cli import main
sys.argv = ["radtag", "--help"]
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert not loaded & {"torch", "numpy", "pyarrow", "pydantic", "rich", "spacy", "transformers", "onnxruntime", "llama_cpp"}

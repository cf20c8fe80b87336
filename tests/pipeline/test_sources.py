from __future__ import annotations

import csv
import gzip
import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.contracts import Report
from pipeline.chunks import chunks, plan
from pipeline.source_files import ENCODINGS, known_encoding
from pipeline.sources import Columns, FileSource, SourceError, find_files, would_find
from pipeline.text_as_given import UnusableRow


def read(path: object, columns: Columns | None = None) -> list[Report]:
    return list(FileSource(find_files(str(path)), columns or Columns()).reports())


def refusal(path: object, columns: Columns | None = None) -> str:
    with pytest.raises(SourceError) as error:
        plan(FileSource(find_files(str(path)), columns or Columns()))
    return str(error.value).replace(str(Path(str(path)).parent) + "/", "")


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_every_kind_of_file_gives_the_same_reports(tmp_path: Path) -> None:
    reports = [Report("r1", 'a "nodule",\nright', "p1", "2020-01-02"), Report("r2", "결절", "p2", "2020-01-03")]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "report_id", "text", "patient_id"])
        writer.writerows([r.study_date, r.report_id, r.text, r.patient_id] for r in reports)
    rows = [{"report_id": r.report_id, "text": r.text, "patient_id": r.patient_id, "date": r.study_date} for r in reports]
    write(tmp_path / "b.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    write(tmp_path / "bom.CSV", b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + (tmp_path / "b.jsonl").read_bytes())
    for name in ("a.csv", "a.csv.gz", "b.jsonl", "b.jsonl.gz", "c.parquet", "bom.CSV", "bom.jsonl"):
        assert read(tmp_path / name) == reports, name


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r")), min_size=1, max_size=5))
def test_csv_texts_come_back_whatever_they_hold(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "reports.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["report_id", "text"], *([f"r{n}", text] for n, text in enumerate(texts))])
    assert [report.text for report in read(path)] == texts


def test_a_quoted_text_of_ten_thousand_lines_is_one_report(tmp_path: Path) -> None:
    text = "nodule in RUL\n" * 10_000
    path = write(tmp_path / "a.csv", f'report_id,text\nr1,"{text}"\nr2,mass\n')
    assert [report.text for report in read(path)] == [text, "mass"]


def test_a_megabyte_in_one_csv_field_is_read_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", f"report_id,text\nr1,{'x' * 1_000_000}\n")
    assert len(read(path)[0].text) == 1_000_000


def test_columns_can_be_named_and_dates_and_numbers_become_texts(tmp_path: Path) -> None:
    table = pa.table({"acc": [17, 18], "rep": ["a", "b"], "mrn": [5, None], "day": [date(2020, 1, 2), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    reports = read(tmp_path / "a.parquet", Columns("acc", "rep", "mrn", "day"))
    assert reports == [Report("17", "a", "5", "2020-01-02"), Report("18", "b")]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_texts_of_every_kind_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    values: list[object] = [b"nodule", b"mass"] if kind == pa.binary() else ["nodule", "mass"]
    pq.write_table(pa.table({"report_id": ["a", "b"], "text": pa.array(values).cast(kind)}), tmp_path / "a.parquet")
    assert [report.text for report in read(tmp_path / "a.parquet")] == ["nodule", "mass"]


def test_one_parquet_value_that_is_not_utf8_spoils_its_row_alone(tmp_path: Path) -> None:
    texts = pa.array([b"nodule", b"ma\xffss"]).view(pa.string())
    pq.write_table(pa.table({"report_id": ["a", "b"], "text": texts}), tmp_path / "a.parquet")
    assert [report.text for report in read(tmp_path / "a.parquet")] == ["nodule", "ma\udcffss"]


def test_bytes_that_are_not_utf8_spoil_their_row_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"report_id,text\nr1,nod\xffule\nr2,mass\n")
    assert [report.text for report in read(path)] == ["nod\udcffule", "mass"]
    path = write(tmp_path / "a.jsonl", b'{"report_id":"r1","text":"nod\xffule"}\n{"report_id":"r2","text":"mass"}\n')
    assert [report.text for report in read(path)] == ["nod\udcffule", "mass"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"report_id":"r1","text":null}', "text is null; a string is expected"),
        ('{"report_id":"r1","text":7}', "text is a int; a string is expected"),
        ('{"report_id":"r1","text":["a"]}', "text is a list; a string is expected"),
        ('{"report_id":"r1"}', "row has no 'text'"),
    ],
)
def test_a_row_without_a_text_is_unusable_and_keeps_its_id(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", line + '\n{"report_id":"r2","text":"mass"}\n')
    assert read(path) == [UnusableRow("r1", "", None, None, problem), Report("r2", "mass")]


def test_a_csv_row_with_a_comma_too_many_is_unusable_and_never_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "report_id,text\nr1,nodule, right lung\nr2\n")
    assert [row.problem[:33] for row in read(path) if isinstance(row, UnusableRow)] == [
        "row has 3 fields, the header 2 (a",
        "row has 1 fields, the header 2 (a",
    ]


def test_no_cell_of_a_csv_row_with_a_wrong_number_of_fields_is_used_or_shown(tmp_path: Path) -> None:
    header, row = "text,report_id,patient_id,date\n", "Nodule in RUL, no effusion,r1,p1,2020-01-02\n"
    path = write(tmp_path / "a.csv", header + row * 2 + "mass,r2,p2,2020-01-03\n\n(3 rows affected)\n")
    problem = "row has {} fields, the header 4 (a comma or quote inside a text that is not quoted?)"
    assert read(path) == [
        UnusableRow("a.csv row 1", "", None, None, problem.format(5)),
        UnusableRow("a.csv row 2", "", None, None, problem.format(5)),
        Report("r2", "mass", "p2", "2020-01-03"),
        UnusableRow("a.csv row 5", "", None, None, problem.format(1)),
    ]
    assert plan(FileSource(find_files(str(path)), Columns())).n_reports == 4


def test_rows_without_an_id_are_named_apart_in_files_of_one_name_and_as_before_when_the_folder_moved(tmp_path: Path) -> None:
    for folder in ("in/2020", "in/2021"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder / "a.csv", HEAD + "one\n")
    expected = ["2020/a.csv row 1", "2021/a.csv row 1"]
    assert [report.report_id for report in read(tmp_path / "in")] == expected
    (tmp_path / "in").rename(tmp_path / "moved")
    assert [report.report_id for report in read(tmp_path / "moved" / "*" / "*.csv")] == expected


def test_an_id_that_is_the_name_of_a_row_without_one_stands_twice(tmp_path: Path) -> None:
    found = refusal(write(tmp_path / "a.csv", HEAD + "a.csv row 2,nodule\none\n"))
    assert found == "a.csv: row 2: report id 'a.csv row 2' stands a second time; first at a.csv: row 1"


HEAD = "report_id,text\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "", "a.csv: is empty"),
        ("a.csv", HEAD, "a.csv: holds no rows"),
        ("a.jsonl", "", "a.jsonl: is empty"),
        ("a.jsonl", "\n\n", "a.jsonl: holds no rows"),
        ("a.parquet", "", "a.parquet: is empty"),
        ("a.parquet", "PAR1 no", "a.parquet: cannot be read as Parquet (ArrowInvalid)"),
        ("a.csv", "reportid,text\nr1,a\n", "a.csv: has no column 'report_id'; did you mean 'reportid'? (set it with --id-column)"),
        ("a.csv", "report_id,txt\nr1,a\n", "a.csv: has no column 'text'; did you mean 'txt'? (set it with --text-column)"),
        ("a.csv", "report_id,text,text\nr1,a,b\n", "a.csv: column 'text' stands twice in the header"),
        ("a.csv", HEAD + "r1,a\n,b\n", "a.csv: row 2: has no report id"),
        ("a.csv", HEAD + "r1,a\nr2,b\nr1,c\n", "a.csv: row 3: report id 'r1' stands a second time; first at a.csv: row 1"),
        ("a.csv", HEAD.encode() + b"r\xff,a\n", "a.csv: row 1: report id is not UTF-8"),
        ("a.csv", "report_id,text\n".encode("utf-16"), "a.csv: is UTF-16; save it as UTF-8"),
        ("a.jsonl", '{"report_id":"r1","text":"a"}\n{"report_id":', "a.jsonl:2: is no JSON"),
        ("a.jsonl", '{"report_id":"r1","text":"a"}\n["r2"]', "a.jsonl:2: is a JSON list; an object is expected"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: is no JSON"),
        ("a.jsonl", '{"id":"r1","text":"a"}', "a.jsonl:1: has no 'report_id'"),
        ("a.jsonl", '{"report_id":null,"text":"a"}', "a.jsonl:1: has no report id"),
        ("a.jsonl", '{"report_id":" ","text":"a"}', "a.jsonl:1: has no report id"),
        ("a.jsonl", '{"report_id":1.5,"text":"a"}', "a.jsonl:1: report id is a float; a text or a whole number is expected"),
        ("a.jsonl", '{"report_id":true,"text":"a"}', "a.jsonl:1: report id is a bool; a text or a whole number is expected"),
        ("a.jsonl", '{"report_id":1,"text":"a"}\n{"report_id":"1","text":"b"}', "a.jsonl:2: report id '1' stands a second time"),
        ("a.jsonl", '{"report_id":"r1","report":"a"}', "a.jsonl: no row has 'text'"),
        ("a.csv.gz", gzip.compress(b"report_id,text\nr1,a\n" * 99, mtime=0)[:40], "a.csv.gz: is cut short or damaged (gzip)"),
        ("a.jsonl.gz", "no gzip", "a.jsonl.gz: is cut short or damaged (gzip)"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused_as_a_whole(tmp_path: Path, name: str, data: bytes | str, message: str) -> None:
    found = refusal(write(tmp_path / name, data))
    assert found.startswith(message), found


@pytest.mark.parametrize("text", ["Spiculated mass in RUL of John Smith", "Normal chest.", "x" * 41])
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_first_line_that_is_no_header_is_not_quoted(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        write(path, f"report,{text}\n124,mass\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"report": ["124"], text: ["mass"]}), path)
    else:
        write(path, json.dumps({"report": "124", text: "mass"}))
    expected = {
        "csv": "a.csv: has no column 'report_id'; it has 2 columns; is the first line a header? (set it with --id-column)",
        "parquet": "a.parquet: has no column 'report_id'; it has 2 columns; is the first line a header? (set it with --id-column)",
        "jsonl": "a.jsonl:1: has no 'report_id'; it has 2 keys (set it with --id-column)",
    }
    assert refusal(path) == expected[kind]


def test_a_number_in_the_first_line_makes_it_no_header(tmp_path: Path) -> None:
    assert "is the first line a header?" in refusal(write(tmp_path / "a.csv", "123,John Smith\n124,mass\n"))


def test_keys_that_are_no_names_are_not_quoted_when_no_row_has_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", json.dumps({"report_id": "r1", "Spiculated mass in RUL of John Smith": 1}))
    assert refusal(path) == "a.jsonl: no row has 'text'; the first one has 2 keys (set it with --text-column)"


def test_names_of_a_header_are_listed_where_none_is_near(tmp_path: Path) -> None:
    found = refusal(write(tmp_path / "a.csv", "accession,Findings of the radiologist\n1,a\n"))
    assert found.startswith("a.csv: has no column 'report_id'; known: Findings of the radiologist, accession (set")


def test_a_quote_that_is_never_closed_is_refused_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.source_files.MAX_FIELD_BYTES", 1000)
    found = refusal(write(tmp_path / "a.csv", HEAD + 'r1,"never\n' + "r2,a\n" * 1000))
    assert found.startswith("a.csv: lines 2 to 201: field larger than field limit (1000) (a quote that is never closed")
    assert refusal(write(tmp_path / "a.jsonl", '{"report_id":"' + "x" * 1000)) == "a.jsonl:1: line is longer than 1000 bytes"


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ('r1,"never\nr2,a\nr3,b\n', "lines 2 to 4"),
        ('r1,"not closed\nr2,"b"\nr3,c\n', "lines 2 to 3"),
        ('r1,a\nr2,"says "none" here"\nr3,c\n', "line 3"),
    ],
)
def test_a_quote_at_a_wrong_place_never_takes_the_rows_after_it_along(tmp_path: Path, rows: str, lines: str) -> None:
    assert refusal(write(tmp_path / "a.csv", HEAD + rows)).startswith(f"a.csv: {lines}: ")


def test_a_csv_of_ten_thousand_rows_with_quoted_newlines_keeps_every_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEAD + "".join(f'r{n},"nodule ""{n}"",\r\n\nin RUL"\r\n' for n in range(10_000)))
    assert read(path) == [Report(f"r{n}", f'nodule "{n}",\r\n\nin RUL') for n in range(10_000)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_give_the_same_reports(tmp_path: Path, encoding: str) -> None:
    text = {"cp1252": "café 8 mm", "latin-1": "café 8 mm", "shift_jis": "右上葉に結節", "big5": "右上葉結節"}.get(
        encoding, "우하엽에 결절, 8 mm"
    )
    rows = json.dumps({"report_id": "r1", "text": text}, ensure_ascii=False) + "\n"
    for name, data in (("a.csv", f'report_id,text\nr1,"{text}"\n'), ("a.jsonl", rows)):
        (tmp_path / name).write_bytes(data.encode(encoding))
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data.encode(encoding)))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            assert list(FileSource((path,), Columns(), encoding).reports()) == [Report("r1", text)]


def test_a_row_of_another_encoding_is_unusable_alone_and_a_header_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", HEAD.encode() + "r1,결절".encode("cp949") + b"\xff\nr2,mass\n")
    assert list(FileSource((path,), Columns(), "cp949").reports()) == [
        UnusableRow("r1", "", None, None, "text is not CP949 at character 2"),
        Report("r2", "mass"),
    ]
    message = "a.csv: header is not UTF-8 (set the file's own with --encoding)"
    assert refusal(write(path, "번호,판독문\nr1,결절\n".encode("cp949")), Columns("번호", "판독문")) == message


@pytest.mark.parametrize(("name", "found"), [("CP949", "cp949"), ("ms949", "cp949"), ("UTF8", "utf-8"), ("iso-8859-1", "latin-1")])
def test_encodings_are_known_by_their_other_names(name: str, found: str) -> None:
    assert known_encoding(name) == found


@pytest.mark.parametrize("name", ["utf-16", "cp94", "base64", "", "a\0b"])
def test_encodings_that_cannot_be_read_row_by_row_are_refused(name: str) -> None:
    with pytest.raises(SourceError, match="is not known"):
        known_encoding(name)


def test_a_report_text_under_the_id_column_is_refused_and_not_quoted(tmp_path: Path) -> None:
    for text in ("Hong Gildong " * 20, "Hong Gildong\nnodule"):
        row = json.dumps({"report_id": text, "text": "a"})
        found = refusal(write(tmp_path / "a.jsonl", f"{row}\n{row}\n"))
        assert found.startswith("a.jsonl:1: report id has ")
        assert "Hong" not in found


def test_a_parquet_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["r1"]), pa.array(["a"]), pa.array(["b"])], names=["report_id", "text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == "a.parquet: column 'text' stands twice"


def test_a_folder_whose_reports_would_be_missed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.csv", HEAD + "r1,a\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(SourceError, match="more: is a link to a folder and is not followed"):
        find_files(str(tmp_path / "in"))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(place: object) -> object:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(SourceError, match="cannot be read: Permission denied"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("option", ["patient_id", "study_date"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_column_that_was_asked_for_must_be_there(tmp_path: Path, name: str, option: str) -> None:
    path = write(tmp_path / name, HEAD + "r1,a\n" if name == "a.csv" else '{"report_id":"r1","text":"a"}\n')
    assert "'mrn'" in refusal(path, Columns(**{option: "mrn"}))


def test_a_folder_is_read_to_its_depth_in_the_order_of_names(tmp_path: Path) -> None:
    for n, name in enumerate(("b.csv", "year=2020/a.jsonl", "a.csv")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write(path, HEAD + f"r{n},a\n" if name.endswith("csv") else json.dumps({"report_id": f"r{n}", "text": "a"}))
    write(tmp_path / "_SUCCESS", "")
    write(tmp_path / ".hidden.txt", "")
    assert [report.report_id for report in read(tmp_path)] == ["r2", "r0", "r1"]
    assert [report.report_id for report in read(tmp_path / "*.csv")] == ["r2", "r0"]
    assert [report.report_id for report in read(tmp_path / "**" / "*.jsonl")] == ["r1"]
    with pytest.raises(SourceError, match="row 1: report id 'r0' stands a second time"):
        write(tmp_path / "c.csv", HEAD + "r0,a\n")
        plan(FileSource(find_files(str(tmp_path)), Columns()))


@pytest.mark.parametrize(
    ("given_path", "message"),
    [
        ("reprots.csv", "does not exist; did you mean 'reports.csv'?"),
        ("nothing/here.csv", "does not exist"),
        ("*.parquet", "no file fits this pattern"),
        ("empty", "folder holds no files"),
        ("notes.txt", "extension '.txt' is not known; expected .csv, .csv.gz, .jsonl, .jsonl.gz, .parquet"),
        ("mixed", "extension '.xlsx' is not known"),
    ],
)
def test_inputs_that_cannot_be_found_say_so(tmp_path: Path, given_path: str, message: str) -> None:
    write(tmp_path / "reports.csv", HEAD + "r1,a\n")
    write(tmp_path / "notes.txt", "")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    write(tmp_path / "mixed" / "book.xlsx", "")
    with pytest.raises(SourceError) as error:
        find_files(str(tmp_path / given_path))
    assert message in str(error.value)


def test_chunks_are_named_by_their_ids_and_texts(tmp_path: Path) -> None:
    def names(*texts: str, chunk_reports: int = 2) -> list[str]:
        path = write(
            tmp_path / "a.jsonl", "".join(json.dumps({"report_id": f"r{n}", "text": t}) + "\n" for n, t in enumerate(texts))
        )
        return [chunk.name for chunk in chunks(FileSource((path,), Columns()), chunk_reports=chunk_reports)]

    before = names("a", "b", "c")
    assert before == names("a", "b", "c")
    assert before[0] == names("a", "b", "d")[0]
    assert before[1] != names("a", "b", "d")[1]
    assert before[0].startswith("part-000000-")
    assert len(names("a", "b", "c", chunk_reports=1)) == 3


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("data/**/*.jsonl", "data/out/parts/part-1.jsonl", True),
        ("data/**/*.jsonl", "data/part-1.jsonl", True),
        ("data/**/*.csv", "data/out/parts/part-1.jsonl", False),
        ("data/*.jsonl", "data/out/part-1.jsonl", False),
        ("data/*/p*/*.jsonl", "data/out/parts/part-1.jsonl", True),
        ("./data/../data/*.jsonl", "data/part-1.jsonl", True),
        ("data", "data/deep/part-1.jsonl", True),
        ("dat[ab]/*", "data/part-1.jsonl", True),
        ("linked/**/*.jsonl", "data/out/parts/part-1.jsonl", True),
        ("data/*.jsonl", "linked/part-1.jsonl", True),
        ("data/a.csv", "linked/a.csv", True),
        ("other/*.csv", "data/a.csv", True),
        ("nothing.csv", "data/a.csv", False),
    ],
)
def test_a_file_that_would_be_input_is_known_before_it_stands_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, name: str, found: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "data" / "a.csv", HEAD)
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    (tmp_path / "other" / "b.csv").symlink_to(tmp_path / "data" / "a.csv")
    for given_path in (pattern, f"{tmp_path}/{pattern}"):
        assert would_find(given_path, Path(name)) is found
        assert would_find(given_path, tmp_path / name) is found

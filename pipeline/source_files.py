"""The rows of one input file, as they stand there: CSV, JSON Lines (both also gzipped), Parquet.

Bytes that are not of the encoding arrive as lone surrogates (surrogateescape), so that one bad row does not end a file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

from configs.yaml_lines import are_names, did_you_mean

EXTENSIONS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")
MAX_FIELD_BYTES = 64 * 2**20
# Encodings in which a line end is one byte and every ASCII character is itself.
ENCODINGS = ("utf-8", "cp949", "euc-kr", "shift_jis", "gb18030", "big5", "cp1252", "latin-1")
DEFAULT_ENCODING = ENCODINGS[0]
PARQUET_BATCH_ROWS = 1024


class SourceError(Exception):
    """An input that cannot be tagged as a whole: file, row or line, what was found, what is expected."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Column names. `patient_id` and `study_date` None means: the default name where the input has it, else nothing.

    `others` are columns that `--where` looks at.
    """

    report_id: str = "report_id"
    text: str = "text"
    patient_id: str | None = None
    study_date: str | None = None
    others: tuple[str, ...] = ()

    def named(self, known: list[str], where: str) -> tuple[str | None, ...]:
        """The four columns, and the others, of an input that has the columns `known`.

        Raises:
            SourceError: one is not there; with the option, and with the nearest name where all of `known` look like names.
        """
        for name, option in (
            (self.report_id, "--id-column"),
            (self.text, "--text-column"),
            (self.patient_id, "--patient-column"),
            (self.study_date, "--date-column"),
            *((name, "--where") for name in self.others),
        ):
            if name is not None and name not in known:
                near = _near(name, known, otherwise=f"; it has {len(known)} columns; is the first line a header?")
                raise SourceError(f"{where}: has no column '{name}'{near} (set it with {option})")
        patient = self.patient_id or ("patient_id" if "patient_id" in known else None)
        return self.report_id, self.text, patient, self.study_date or ("date" if "date" in known else None), *self.others


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as read. `where` is its file and row or line; `problem` is set when the row has no text that could be trusted.

    `others` are the cells of `Columns.others`. `bare_number` is the number of a row of which no cell can be trusted, so that all
    are None; None for the other rows.
    """

    where: str
    report_id: object
    text: object
    patient_id: object = None
    study_date: object = None
    problem: str | None = None
    others: tuple[object, ...] = ()
    bare_number: int | None = None


def known_encoding(name: str) -> str:
    """The name in ENCODINGS that `name` is or is an alias of ("UTF8", "ms949"). Raises SourceError."""
    try:
        wanted = codecs.lookup(name).name
    except (LookupError, ValueError):
        wanted = ""
    for known in ENCODINGS:
        if codecs.lookup(known).name == wanted:
            return known
    raise SourceError(f"encoding '{name}' is not known{did_you_mean(name, ENCODINGS)}")


def read_rows(path: Path, columns: Columns, *, encoding: str = DEFAULT_ENCODING) -> Iterator[RawRow]:
    """The rows of one file, streamed.

    Args:
        encoding: Of CSV and JSON Lines, one of ENCODINGS; Parquet says itself what it holds.

    Raises:
        SourceError: the file cannot be read or lacks a column.
    """
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".csv"):
            yield from _csv_rows(path, columns, encoding)
        elif name.endswith(".jsonl"):
            yield from _json_rows(path, columns, encoding)
        else:
            yield from _parquet_rows(path, columns)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise SourceError(f"{path}: is cut short or damaged (gzip)") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from None


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _csv_rows(path: Path, columns: Columns, encoding: str) -> Iterator[RawRow]:
    with _opened(path) as raw:
        head = cast(BufferedReader, raw).peek(2)[:2]
        if head in (b"\xff\xfe", b"\xfe\xff") and encoding != "latin-1":
            raise SourceError(f"{path}: is UTF-16; save it as UTF-8")
        csv.field_size_limit(MAX_FIELD_BYTES)
        codec = "utf-8-sig" if encoding == DEFAULT_ENCODING else encoding
        # strict: a quote at a wrong place would otherwise join the rows after it to its own, and they would be lost
        reader = csv.reader(TextIOWrapper(raw, encoding=codec, errors="surrogateescape", newline=""), strict=True)
        begin_line = 1
        try:
            header = next(reader, None)
            if header is None:
                return
            places = _places(header, columns, path, encoding)
            begin_line = reader.line_num + 1
            for number, fields in enumerate(reader, 1):
                begin_line = reader.line_num + 1
                if fields:
                    yield _csv_row(f"{path}: row {number}", number, fields, places, n_columns=len(header))
        except csv.Error as error:
            lines = f"lines {begin_line} to {reader.line_num}" if reader.line_num > begin_line else f"line {begin_line}"
            raise SourceError(f"{path}: {lines}: {error} (a quote that is never closed, or that is not doubled?)") from None


def _places(header: list[str], columns: Columns, path: Path, encoding: str) -> list[int | None]:
    """Where the columns stand in a CSV header; None for one that the input does not have."""
    if any(undecoded(name) is not None for name in header):
        raise SourceError(f"{path}: header is not {encoding.upper()} (set the file's own with --encoding)")
    names = columns.named(header, str(path))
    for name in names:
        if name is not None and header.count(name) > 1:
            raise SourceError(f"{path}: column '{name}' stands twice in the header")
    return [None if name is None else header.index(name) for name in names]


def undecoded(text: str) -> int | None:
    """Place in `text` of the first byte that is not of the file's encoding: a lone surrogate, U+DC80 to U+DCFF."""
    if text.isascii():
        return None
    return next((place for place, character in enumerate(text) if "\udc80" <= character <= "\udcff"), None)


def _csv_row(where: str, number: int, fields: list[str], places: list[int | None], *, n_columns: int) -> RawRow:
    if len(fields) != n_columns:  # a piece of the text may stand under any column, the ids' too
        problem = f"row has {len(fields)} fields, the header {n_columns} (a comma or quote inside a text that is not quoted?)"
        return RawRow(where, None, None, problem=problem, others=(None,) * (len(places) - 4), bare_number=number)
    report_id, text, patient_id, study_date, *others = [None if place is None else fields[place] for place in places]
    return RawRow(where, report_id, text, patient_id, study_date, None, tuple(others))


def _near(name: str, known: list[str], *, otherwise: str) -> str:
    return did_you_mean(name, known) if are_names(known) else otherwise


def _json_rows(path: Path, columns: Columns, encoding: str) -> Iterator[RawRow]:
    not_seen: dict[str | None, str] = dict.fromkeys(columns.others, "--where")
    not_seen |= {columns.text: "--text-column", columns.patient_id: "--patient-column", columns.study_date: "--date-column"}
    not_seen.pop(None, None)
    first_keys = None
    with _opened(path) as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_FIELD_BYTES + 1), b""), 1):
            where = f"{path}:{number}"
            if len(line) > MAX_FIELD_BYTES:
                raise SourceError(f"{where}: line is longer than {MAX_FIELD_BYTES} bytes")
            if not line.strip():
                continue
            found = _json_object(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where, encoding)
            keys = list(found)
            if first_keys is None:
                first_keys = keys
            if columns.report_id not in found:
                near = _near(columns.report_id, keys, otherwise=f"; it has {len(keys)} keys")
                raise SourceError(f"{where}: has no '{columns.report_id}'{near} (set it with --id-column)")
            for name in [name for name in not_seen if name in found]:
                del not_seen[name]
            yield RawRow(
                where,
                found[columns.report_id],
                found.get(columns.text),
                found.get(columns.patient_id or "patient_id"),
                found.get(columns.study_date or "date"),
                None if columns.text in found else f"row has no '{columns.text}'",
                tuple(found.get(name) for name in columns.others),
            )
    for missing, option in not_seen.items():
        if first_keys is not None and missing is not None:
            near = _near(missing, first_keys, otherwise=f"; the first one has {len(first_keys)} keys")
            raise SourceError(f"{path}: no row has '{missing}'{near} (set it with {option})")


def _json_object(line: bytes, where: str, encoding: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line.decode(encoding, errors="surrogateescape"))
    except (ValueError, RecursionError):
        raise SourceError(f"{where}: is no JSON") from None
    if not isinstance(found, dict):
        raise SourceError(f"{where}: is a JSON {type(found).__name__}; an object is expected")
    return found


def _parquet_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        return
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            known = file.schema_arrow.names
            names = columns.named(known, str(path))
            for name in names:
                if name is not None and known.count(name) > 1:
                    raise SourceError(f"{path}: column '{name}' stands twice")
            wanted = list(dict.fromkeys(name for name in names if name is not None))
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=wanted):
                values = [[None] * batch.num_rows if name is None else _python_values(batch.column(name)) for name in names]
                for row in zip(*values, strict=True):
                    number += 1
                    report_id, text, patient_id, study_date, *others = row
                    yield RawRow(f"{path}: row {number}", report_id, text, patient_id, study_date, None, tuple(others))
    except pa.ArrowException as error:
        raise SourceError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from None


def _python_values(column: Any) -> list[object]:
    """Texts are decoded here, for Arrow refuses a whole column when one value is not UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.large_binary())
    values: list[object] = column.to_pylist()
    return [value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else value for value in values]

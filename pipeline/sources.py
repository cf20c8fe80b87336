"""Where reports come from: CSV, JSON Lines and Parquet files, a folder or a glob of them, streamed row by row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from configs.contracts import Report
from configs.yaml_lines import did_you_mean
from pipeline.row_filter import RowFilter, RowFilterError, cell_text
from pipeline.source_files import DEFAULT_ENCODING, EXTENSIONS, Columns, RawRow, SourceError, read_rows, undecoded
from pipeline.text_as_given import UnusableRow

__all__ = ["Columns", "FileSource", "SourceError", "find_files", "would_find"]

GLOB_CHARACTERS = frozenset("*?[")
MAX_ID_CHARS = 256  # ids stand in messages and records; a longer one is a text under the wrong column name


@dataclass(frozen=True, slots=True)
class FileSource:
    """Reports of some files, in the order of the files. A row whose text cannot be used comes as UnusableRow.

    Attributes:
        encoding: Of CSV and JSON Lines files, one of `pipeline.source_files.ENCODINGS`.
        where: Only rows that fit, and rows whose cells cannot be trusted: those are rejected, not passed over.
        limit: Only so many reports, the first ones that fit; None means all.
    """

    files: tuple[Path, ...]
    columns: Columns
    encoding: str = DEFAULT_ENCODING
    where: RowFilter = field(default_factory=RowFilter)
    limit: int | None = None

    def reports(self) -> Iterator[Report]:
        """Raises SourceError for a file or an id that cannot be used; the message has file and row or line."""
        n_rows = 0
        for _, row in self.rows():
            n_rows += 1
            yield _report(row, self.encoding)
        if n_rows == 0:
            none_fits = self.where.conditions and next(self._all_rows(), None) is not None
            raise SourceError(f"{self.files[0]}: no row fits --where" if none_fits else _no_rows(self.files))

    def rows(self) -> Iterator[tuple[Path, RawRow]]:
        """The rows to tag as read, with their file; ids are not checked. A row without cells has `FILE row N` as its id."""
        return islice((found for found in self._all_rows() if self._fits(found[1])), self.limit)

    def _all_rows(self) -> Iterator[tuple[Path, RawRow]]:
        columns = replace(self.columns, others=self.where.columns)
        names = _short_names(self.files)
        for path in self.files:
            for row in read_rows(path, columns, encoding=self.encoding):
                if row.bare_number is not None:
                    row = replace(row, report_id=f"{names[path]} row {row.bare_number}")
                yield path, row

    def _fits(self, row: RawRow) -> bool:
        try:
            return row.problem is not None or self.where.fits(row.others)
        except RowFilterError as error:
            raise SourceError(f"{row.where}: {error}") from None


def find_files(given: str) -> tuple[Path, ...]:
    """The input files that a path, a folder (searched to its depth) or a glob names, sorted.

    In a folder, names that begin with "." or "_" are passed over; a file of another kind, a folder that cannot be read or a link
    to a folder is an error: its reports would be missed.

    Raises:
        SourceError: nothing there, a path that cannot be read, or an extension that is not known.
    """
    try:
        return _found_files(given)
    except OSError as error:
        raise SourceError(f"{error.filename or given}: cannot be read: {error.strerror}") from None


def _found_files(given: str) -> tuple[Path, ...]:
    path = Path(given)
    if not path.exists() and not _is_pattern(path):
        near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() and path.name else ""
        raise SourceError(f"{given}: does not exist{near if 'did you mean' in near else ''}")
    files = list(_listed(path))
    if not files:
        none = f"folder holds no files; expected {_known()}" if path.is_dir() else "no file fits this pattern"
        raise SourceError(f"{given}: {none}")
    for file in files:
        if extension(file) not in EXTENSIONS:
            raise SourceError(f"{file}: extension '{''.join(file.suffixes[-2:]) or 'none'}' is not known; expected {_known()}")
    return tuple(sorted(files))


def would_find(given: str, file: Path) -> bool:
    """Whether `find_files(given)` finds `file`, or would once it stands there. Anything inside a folder counts as found.

    Raises:
        SourceError: a path that cannot be read.
    """
    path, wanted = Path(given), {file.resolve(), file.absolute()}
    try:
        if file.exists() and any(found.resolve() in wanted for found in _listed(path)):  # whichever links lead to it
            return True
        return _would_find(path, wanted)
    except OSError as error:
        raise SourceError(f"{error.filename or given}: cannot be read: {error.strerror}") from None


def _listed(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return _inside(path)
    return _fitting(path) if _is_pattern(path) else [path]


def _is_pattern(path: Path) -> bool:
    return not path.exists() and not GLOB_CHARACTERS.isdisjoint(str(path))


def _would_find(path: Path, wanted: set[Path]) -> bool:
    if path.is_dir():
        return any(found.is_relative_to(path.resolve()) for found in wanted)
    if not _is_pattern(path):
        return path.resolve() in wanted
    n_plain = next(n for n, part in enumerate(path.parts) if GLOB_CHARACTERS & set(part))
    above, pattern = Path(*path.parts[:n_plain]), path.parts[n_plain:]
    return any(
        found.is_relative_to(folder) and _fits_pattern(found.relative_to(folder).parts, pattern)
        for folder in (above.resolve(), above.absolute())
        for found in wanted
    )


def _fits_pattern(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """As Path.glob: `**` stands for any number of folders, other pieces for one name."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits_pattern(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits_pattern(parts[1:], pattern[1:])


def _short_names(files: tuple[Path, ...]) -> dict[Path, str]:
    """Each file by its path below the folder that all have in common: its name alone where they lie in one."""
    common = os.path.commonpath([file.parent for file in files])
    names = {file: file.relative_to(common).as_posix() for file in files}
    return {file: name.encode(errors="surrogateescape").decode(errors="backslashreplace") for file, name in names.items()}


def _inside(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for name in folders:
            if Path(place, name).is_symlink():
                raise SourceError(f"{Path(place, name)}: is a link to a folder and is not followed; give that folder as the input")
        yield from (Path(place, name) for name in names if name[0] not in "._")


def _fitting(pattern: Path) -> list[Path]:
    try:
        return [file for file in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))) if not file.is_dir()]
    except ValueError as error:
        raise SourceError(f"{pattern}: is no pattern: {error}") from None


def extension(path: Path) -> str:
    """`.csv`, `.jsonl.gz`, …, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:]) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


def _known() -> str:
    return ", ".join(EXTENSIONS)


def _no_rows(files: Iterable[Path]) -> str:
    listed = list(files)
    if len(listed) > 1:
        return f"{listed[0]} and {len(listed) - 1} more: hold no rows"
    return f"{listed[0]}: is empty" if listed[0].stat().st_size == 0 else f"{listed[0]}: holds no rows"


def _report(row: RawRow, encoding: str) -> Report:
    report_id = _report_id(row, encoding) if row.bare_number is None else str(row.report_id)
    patient_id, patient_problem = _about(row.patient_id, "patient id", encoding)
    study_date, date_problem = _about(row.study_date, "date", encoding)
    problem = row.problem or _text_problem(row.text, encoding) or patient_problem or date_problem
    if problem is not None:
        return UnusableRow(report_id, "", patient_id, study_date, problem)
    return Report(report_id, str(row.text), patient_id, study_date)


def _text_problem(text: object, encoding: str) -> str | None:
    if not isinstance(text, str):
        return f"text is {'null' if text is None else f'a {type(text).__name__}'}; a string is expected"
    if encoding != DEFAULT_ENCODING and (place := undecoded(text)) is not None:
        return f"text is not {encoding.upper()} at character {place}"
    return None


def _report_id(row: RawRow, encoding: str) -> str:
    found = row.report_id
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    if found is None or (isinstance(found, str) and not found.strip()):
        raise SourceError(f"{row.where}: has no report id")
    if not isinstance(found, str):
        raise SourceError(f"{row.where}: report id is a {type(found).__name__}; a text or a whole number is expected")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise SourceError(f"{row.where}: report id is not {encoding.upper()} (set the file's own with --encoding)") from None
    if len(found) > MAX_ID_CHARS or len(found.splitlines()) > 1:
        raise SourceError(
            f"{row.where}: report id has {len(found)} characters in {len(found.splitlines())} lines; one line of at most "
            f"{MAX_ID_CHARS} is expected (is --id-column the right one?)"
        )
    return found


def _about(found: object, name: str, encoding: str) -> tuple[str | None, str | None]:
    """A patient id or a study date as the input wrote it, and why it cannot be used; None twice when the input has none."""
    try:
        text = cell_text(found, name)
    except RowFilterError:
        return None, f"{name} is a {type(found).__name__}; a text, a number or a date is expected"
    if text is None:
        return None, None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None, f"{name} is not {encoding.upper()}"
    if len(text) > MAX_ID_CHARS or len(text.splitlines()) > 1:
        found_chars = f"{len(text)} characters in {len(text.splitlines())} lines"
        return None, f"{name} has {found_chars}; one line of at most {MAX_ID_CHARS} is expected"
    return text, None

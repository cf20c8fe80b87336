"""Checks a run directory against its input: every id exactly once, every part whole, every record of this run.

A part that a stopped run never finished is no problem, it is not there yet; in a run that came to its end it is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.archive import RunFile, is_finished_part, is_finished_run, part_bytes, part_names, part_problem, read_run
from pipeline.chunks import chunks
from pipeline.records import RecordError, record_from_line
from pipeline.row_filter import row_filter
from pipeline.sources import Columns, FileSource, SourceError, find_files


@dataclass(slots=True)
class Verification:
    """What was found. The run is complete and whole when there are neither `problems` nor unfinished parts."""

    n_reports: int = 0
    n_records: int = 0
    n_parts: int = 0
    n_unfinished: int = 0
    problems: list[str] = field(default_factory=list)


def run_source(run: RunFile, given: str | None = None) -> FileSource:
    """The input of a run, or another place of the same input. Raises SourceError when it cannot be found."""
    columns = Columns(run.input.report_id_column, run.input.text_column, run.input.patient_column, run.input.date_column)
    files = find_files(given or run.input.given)
    return FileSource(files, columns, run.input.encoding, row_filter(run.input.where), run.input.limit)


def verify_run(folder: Path, *, given: str | None = None) -> Verification:
    """Reads input and parts once. Raises ArchiveError when the folder holds no run."""
    run = read_run(folder)
    found = Verification(n_reports=run.input.n_reports)
    lying = part_names(folder)
    expected: set[str] = set()
    n_read = 0
    try:
        for chunk in chunks(run_source(run, given), chunk_reports=run.chunk_reports):
            expected.add(chunk.name)
            n_read += len(chunk.reports)
            _check_part(folder, chunk.name, run, found, ids=[report.report_id for report in chunk.reports])
    except SourceError as error:
        found.problems.append(f"input cannot be compared: {error}")
        for name in sorted(set(lying) - expected):
            _check_part(folder, name, run, found, ids=None)
    else:
        found.problems.extend(f"{name} is no part of this input" for name in lying if name not in expected)
        if n_read != run.input.n_reports:
            found.problems.append(f"input has {n_read} reports now; the run began with {run.input.n_reports}")
    if found.n_records != run.input.n_reports and not found.n_unfinished:
        found.problems.append(f"{found.n_records} records in whole parts; {run.input.n_reports} reports are expected")
    return found


def _check_part(folder: Path, name: str, run: RunFile, found: Verification, *, ids: list[str] | None) -> None:
    if not is_finished_part(folder, name) and not is_finished_run(folder):
        found.n_unfinished += 1
        return
    problem = part_problem(folder, name)
    if problem is not None:
        found.problems.append(problem)
        return
    found.n_parts += 1
    try:
        read = list(_ids(folder, name, run))
    except RecordError as error:
        found.problems.append(str(error))
        return
    found.n_records += len(read)
    if ids is not None and read != ids:
        found.problems.append(f"{name}.jsonl: {_difference(ids, read)}")


def _ids(folder: Path, name: str, run: RunFile) -> Iterator[str]:
    for number, line in enumerate(part_bytes(folder, name).splitlines(), 1):
        where = f"{name}.jsonl:{number}"
        record = record_from_line(line, where=where)
        if record.provenance.get("fingerprint") != run.fingerprint:
            raise RecordError(f"{where}: report '{record.report_id}' has another fingerprint than the run")
        yield record.report_id


def _difference(ids: list[str], read: list[str]) -> str:
    missing = [report_id for report_id in ids if report_id not in read]
    repeated = [report_id for report_id in set(read) if read.count(report_id) > 1]
    strange = [report_id for report_id in read if report_id not in ids]
    for what, some in (("is missing", missing), ("stands more than once", repeated), ("is not in the input", strange)):
        if some:
            return f"report '{some[0]}' {what}"
    return "records stand in another order than the reports"

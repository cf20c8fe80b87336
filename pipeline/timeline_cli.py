"""`radtag timeline`: the course of a disease over each patient's reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from configs.contracts import Report
    from pipeline.sources import Columns
    from pipeline.timeline import Located, Timeline

DEFAULT_MIN_REPORTS = 3
DEFAULT_MAX_CHANGES = 4
DEFAULT_STRIPS = 300


def timeline(
    records: Annotated[Path, typer.Argument(help="A folder that 'radtag tag' wrote, or records as .jsonl or .parquet.")],
    task: Annotated[str, typer.Option(help="A known task (see 'radtag tasks') or the path of a task file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="For timeline.html, sankey.svg, results.json and CSV tables.")],
    reports: Annotated[
        str | None, typer.Option(metavar="INPUT", help="The tagged input, for records without patient id or date.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Of --reports: column of the report ids.")] = "report_id",
    text_column: Annotated[str, typer.Option(help="Of --reports: column of the texts.")] = "text",
    patient_column: Annotated[str | None, typer.Option(help="Of --reports: column of the patient ids; else 'patient_id'.")] = None,
    date_column: Annotated[str | None, typer.Option(help="Of --reports: column of the study dates; else 'date'.")] = None,
    encoding: Annotated[str, typer.Option(help="Of --reports, CSV and JSON Lines: utf-8, cp949, euc-kr, …")] = "utf-8",
    date_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="How dates are written, such as %d.%m.%Y; without it YYYY-MM-DD.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Relation step whose values are the course; needed where there are several.")
    ] = None,
    min_reports: Annotated[int, typer.Option(min=1, help="Patients with fewer reports are not counted.")] = DEFAULT_MIN_REPORTS,
    max_changes: Annotated[int, typer.Option(min=0, help="Patients with more changes are not counted.")] = DEFAULT_MAX_CHANGES,
    max_strips: Annotated[int, typer.Option(min=1, help="Patients that the page shows one by one, of each kind.")] = DEFAULT_STRIPS,
) -> None:
    """Draw each patient's course over time.

    Writes counts of changes, days between reports, a Sankey and a strip for every patient. A failed report is unknown, never a
    state. Exit code 1 when the run is not finished: the timeline is then of the reports that are tagged.
    """
    from configs.schema import load_task
    from pipeline import timeline as courses
    from pipeline.archive import read_run
    from pipeline.sources import Columns
    from pipeline.timeline_files import write_timeline

    loaded = load_task(task)
    chosen = courses.course_step(loaded, step)
    n_reports = read_run(records).input.n_reports if records.is_dir() else None
    given = None if reports is None else _reports(reports, Columns(id_column, text_column, patient_column, date_column), encoding)
    found = courses.timeline(
        loaded,
        chosen,
        located_records(records),
        reports=given,
        date_format=date_format,
        min_reports=min_reports,
        max_changes=max_changes,
    )
    page = write_timeline(found, out, max_strips=max_strips)
    _print(found, page)
    if n_reports is not None and found.n_records != n_reports:
        typer.echo(
            f"radtag: {found.n_records} of {n_reports} reports are tagged, and the timeline is of these alone; "
            "go on with 'radtag tag … --resume'",
            err=True,
        )
        raise typer.Exit(1)


def _print(found: Timeline, page: Path) -> None:
    from pipeline.timeline_drawing import Style
    from pipeline.timeline_files import lead, warnings

    typer.echo(f"{found.n_records} records of {found.n_patients} patients")
    for warning in warnings(found):
        typer.echo(f"radtag: {warning}", err=True)
    typer.echo(f"{'removed':>7} {'left':>7}   patients are counted if")
    for each in found.filters:
        typer.echo(f"{each.n_removed:>7} {each.n_left:>7}   {each.about}")
    typer.echo(lead(found, Style.of(found.task, found.step.values)))
    for label, days in found.intervals().items():
        if days.n:
            typer.echo(
                f"days between reports, {label}: median {days.median:.0f}, quartiles {days.q1:.0f}–{days.q3:.0f} (n={days.n})"
            )
    typer.echo(f"page     {page}")


def _reports(given: str, columns: Columns, encoding: str) -> dict[str, Report]:
    from dataclasses import replace

    from pipeline.source_files import known_encoding
    from pipeline.sources import FileSource, find_files
    from pipeline.timeline import TimelineError

    source = FileSource(find_files(given), columns, known_encoding(encoding))
    found: dict[str, Report] = {}
    for report in source.reports():
        if report.report_id in found:
            raise TimelineError(f"{given}: report id '{report.report_id}' stands twice")
        found[report.report_id] = replace(report, text="")  # only patient and date are needed
    return found


def located_records(path: Path) -> Iterator[Located]:
    """Every record with its file and line, or its row for Parquet. Raises ArchiveError at a part that is not whole, RecordError."""
    from pipeline.archive import PARTS, part_names, require_whole
    from pipeline.records import RecordError, read_json_lines, read_records

    if path.is_dir():
        names = part_names(path)
        if not names:
            raise RecordError(f"{path}: holds no part files of a run")
        for name in names:
            require_whole(path, name)
            part = path / PARTS / f"{name}.jsonl"
            for number, record in enumerate(read_json_lines(part), 1):
                yield f"{part}:{number}", record
        return
    for number, record in enumerate(read_records(path), 1):
        yield f"{path}:{number}", record

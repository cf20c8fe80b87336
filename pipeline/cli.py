"""The `radtag` commands tag, show, export, verify, tasks and doctor. Heavy imports live in the command that needs them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command_group import RadtagGroup
from pipeline.model_options import (
    Adapter,
    GpuLayers,
    HttpConcurrency,
    ModelFile,
    NoAdapter,
    ReadBy,
    Rereads,
    Server,
    ServerModel,
    ServerPlain,
    ServerTimeout,
)
from pipeline.timeline_cli import timeline

if TYPE_CHECKING:
    from configs.contracts import TaggedReport
    from configs.schema import Task
    from pipeline.archive import RunFile
    from pipeline.summary import Summary

EXIT_SOME_ROWS_FAILED = 1
EXIT_INTERRUPTED = 130
SYSTEM_NAMES = "two-stage|encoders|encoder|llm|rules|published-rules"
ENGINE_NAMES = "local|ray"
DEFAULT_SHOWN = 20

app = typer.Typer(
    cls=RadtagGroup,
    name="radtag",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # its tracebacks print local variables, and those hold report text
    help="Reads free-text radiology reports and writes relations that can be queried.",
    epilog="Exit codes: 0 all rows fine, 1 some rows failed or were rejected, 2 usage or input error, 3 the run broke off, "
    "130 stopped by Ctrl-C.",
)

RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder that 'radtag tag' wrote.")]
OtherInput = Annotated[str | None, typer.Option("--input", help="Where the input lies now, if it was moved.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipeline.settings import radtag_version

        print(f"radtag {radtag_version()}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Reads free-text radiology reports and writes relations that can be queried."""


@app.command()
def tag(
    given: Annotated[
        str, typer.Argument(metavar="INPUT", help="A .csv, .jsonl (also .gz) or .parquet file, a folder or a quoted glob.")
    ],
    task: Annotated[str, typer.Option(help="A known task (see 'radtag tasks') or the path of a task file.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the records; new or empty, unless --resume.")],
    system: Annotated[str, typer.Option(metavar=SYSTEM_NAMES, help="Which stages read the reports.")] = "two-stage",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR; begins one where there is none.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Go on, and tag the failed reports again; the others keep their records.")
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Only rows such as 'modality = CT', 'date >= 2020-01-01'; several must all hold."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many reports, the first ones that fit.")] = None,
    model: ModelFile = None,
    encoder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Stage-1 weights; without it those of the task.")] = None,
    gpu_layers: GpuLayers = 0,
    adapter: Adapter = None,
    no_adapter: NoAdapter = False,
    read: ReadBy = None,
    rereads: Rereads = 0,
    server: Server = None,
    server_model: ServerModel = None,
    server_plain: ServerPlain = False,
    server_timeout: ServerTimeout = 120.0,
    http_concurrency: HttpConcurrency = 1,
    pairs: Annotated[bool, typer.Option(help="Stage 1's pair encoder reads relations too, where there is one.")] = True,
    grounding: Annotated[bool, typer.Option(help="Only values that the report mentions.")] = True,
    engine: Annotated[str, typer.Option(metavar=ENGINE_NAMES, help="What runs the chunks; ray needs the extra 'ray'.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes or Ray actors; each loads its own stages.")] = 1,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A running Ray cluster, 'auto' or HOST:PORT; without it one is started here."),
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(min=0.0, help="GPUs that each Ray actor asks for; may be a share.")] = 0.0,
    threads: Annotated[
        int | None, typer.Option(min=1, envvar="RADTAG_THREADS", help="Threads a worker; without it the free cores, shared out.")
    ] = None,
    id_column: Annotated[str, typer.Option(help="Column of the report ids, each once.")] = "report_id",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    patient_column: Annotated[str | None, typer.Option(help="Column of the patient ids; 'patient_id' where there is one.")] = None,
    date_column: Annotated[str | None, typer.Option(help="Column of the study dates; 'date' where there is one.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV and JSON Lines: utf-8, cp949, euc-kr, shift_jis, …")] = "utf-8",
    max_report_chars: Annotated[int, typer.Option(min=1, help="Longer reports are rejected, never cut.")] = 100_000,
    chunk_reports: Annotated[int | None, typer.Option(min=1, help="Reports a part file; without it 64.")] = None,
    metrics: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Figures of the run in Prometheus text format, renewed every 10 s.")
    ] = None,
) -> None:
    """Tag an archive.

    Writes one record a report, in part files from which a stopped run can go on.
    """
    from configs.yaml_lines import did_you_mean
    from pipeline.progress import shown_progress
    from pipeline.settings import SettingsError, free_cores, settings
    from pipeline.sources import Columns
    from pipeline.tagging import ENGINES, TagRequest, tag_archive

    if engine not in ENGINES:
        raise SettingsError(f"engine '{engine}' is not known{did_you_mean(engine, ENGINES)}")
    if engine == "local" and (ray_address is not None or gpus_per_worker):
        raise SettingsError("--ray-address and --gpus-per-worker go with --engine ray")
    checked = settings(
        task=task,
        system=system,
        encoder=encoder,
        model=model,
        gpu_layers=gpu_layers,
        adapter=adapter,
        no_adapter=no_adapter,
        read=read,
        rereads=rereads,
        server=server,
        server_model=server_model,
        server_plain=server_plain,
        server_timeout_s=server_timeout,
        http_concurrency=http_concurrency,
        pairs=pairs,
        grounding=grounding,
        max_report_chars=max_report_chars,
        threads=threads or max(1, free_cores() // workers),
    )
    columns = Columns(id_column, text_column, patient_column, date_column)
    request = TagRequest(
        given,
        columns,
        checked,
        out,
        encoding,
        resume=resume or retry_failed,
        retry_failed=retry_failed,
        workers=workers,
        chunk_reports=chunk_reports,
        where=tuple(where or ()),
        limit=limit,
        engine=engine,  # type: ignore[arg-type]  # checked against ENGINES above
        ray_address=ray_address,
        gpus_per_worker=gpus_per_worker,
        metrics=metrics,
    )
    try:
        with shown_progress(sys.stderr) as progress:
            summary = tag_archive(request, progress)
    except KeyboardInterrupt:
        typer.echo("radtag: stopped; the parts written so far are whole, the same command with --resume goes on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print_summary(summary, out)
    if summary.counts["failed"] or summary.counts["rejected"]:
        raise typer.Exit(EXIT_SOME_ROWS_FAILED)


@app.command()
def show(
    folder: RunFolder,
    limit: Annotated[int, typer.Option(min=1, help="Records to show.")] = DEFAULT_SHOWN,
    status: Annotated[
        str | None, typer.Option(metavar="ok|no_findings|failed|rejected", help="Only records of this status.")
    ] = None,
    other_input: OtherInput = None,
) -> None:
    """Show records, and where they stand in the text."""
    from itertools import islice

    from rich.console import Console

    from pipeline.archive import read_run
    from pipeline.show import records_table, shown_records

    _check_status(status)
    run = read_run(folder)
    source = None
    try:
        from pipeline.sources import SourceError
        from pipeline.verify import run_source

        source = run_source(run, other_input)
    except SourceError as error:
        if other_input is not None:
            raise
        typer.echo(f"radtag: without the input ({error}); positions are shown instead of text", err=True)
    shown = list(islice(shown_records(folder, run, source, status=status), limit + 1))
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=140)
    console.print(records_table(shown[:limit], _task_of(run)))
    if len(shown) > limit:
        print(f"the first {limit} records; more with --limit, all of them with 'radtag export'")


@app.command()
def export(
    folder: RunFolder,
    file_format: Annotated[str, typer.Option("--format", metavar="jsonl|csv|parquet", help="csv: one row a relation.")] = "jsonl",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One new file, whole or not at all; without it standard output.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also where FILE exists; never one of the run or its input.")] = False,
) -> None:
    """Write all records in one piece.

    CSV has a row for every relation, for every entity without one and for every report without any.
    """
    from configs.yaml_lines import did_you_mean
    from pipeline.archive import read_run
    from pipeline.settings import SettingsError
    from pipeline.sinks import FORMATS, CsvSink, JsonLinesSink, ParquetSink, whole_file

    if file_format not in FORMATS:
        raise SettingsError(f"format '{file_format}' is not known{did_you_mean(file_format, FORMATS)}")
    run = read_run(folder)
    records = _whole_records(folder)
    stream_sink = CsvSink if file_format == "csv" else JsonLinesSink
    if out is None:
        if file_format == "parquet":
            raise SettingsError("Parquet goes to a file: give --out FILE")
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="strict", newline="")  # whatever the terminal's encoding is
        n_records = stream_sink(sys.stdout).write(records)
    else:
        _refuse_export_to(out, folder, run, replace=replace)
        with whole_file(out) as temporary:
            if file_format == "parquet":
                n_records = ParquetSink(temporary).write(records)
            else:
                with temporary.open("w", encoding="utf-8", newline="") as stream:
                    n_records = stream_sink(stream).write(records)
    if n_records != run.input.n_reports:
        typer.echo(f"radtag: {n_records} of {run.input.n_reports} reports are tagged; go on with 'radtag tag … --resume'", err=True)
        raise typer.Exit(EXIT_SOME_ROWS_FAILED)


@app.command()
def verify(folder: RunFolder, other_input: OtherInput = None) -> None:
    """Check that no record is missing or damaged.

    Every input id must have exactly one record, and every part file must be whole. Exit code 1 when that is not so, or not yet.
    """
    from pipeline.verify import verify_run

    found = verify_run(folder, given=other_input)
    for problem in found.problems:
        typer.echo(f"radtag: {problem}", err=True)
    print(f"{found.n_records} records of {found.n_reports} reports in {found.n_parts} whole parts, {len(found.problems)} problems")
    if found.n_unfinished:
        n_left = found.n_reports - found.n_records
        print(f"not finished yet: {found.n_unfinished} parts, {n_left} reports; go on with 'radtag tag … --resume'")
    if found.problems or found.n_unfinished:
        raise typer.Exit(1)


@app.command()
def tasks() -> None:
    """List the known tasks: entities, values, steps."""
    from configs.schema import known_tasks, load_task

    for name in known_tasks():
        task = load_task(name)
        print(f"{name}: {task.title}\n  file      {task.path}")
        for key, entity in task.entities.items():
            print(f"  entity    {key:<28}{entity.label}")
        for key, value in task.values.items():
            parts = f" = {' + '.join(value.parts)}" if value.parts else ""
            print(f"  value     {key:<28}{value.label}{parts}")
        for step in task.steps:
            values = f" → {', '.join(step.values)}" if step.values else ""
            print(f"  step      {step.name:<28}{step.kind} of {len(step.subjects)} subjects{values}")


@app.command()
def doctor() -> None:
    """Say what is installed and what is missing.

    Exit code 1 when something that tagging needs is missing.
    """
    from pipeline.doctor import checks

    n_missing = 0
    for check in checks():
        n_missing += check.ok is False
        print(f"{'–' if check.ok is None else 'ok' if check.ok else 'MISSING':<8}{check.name:<20}{check.found}")
    if n_missing:
        typer.echo(f"radtag: {n_missing} of these must be put right before every system can run", err=True)
        raise typer.Exit(1)


app.command()(timeline)


def _print_summary(summary: Summary, out: Path) -> None:
    counts = ", ".join(f"{count} {status}" for status, count in summary.counts.items())
    rate = summary.reports_per_s
    print(f"{summary.n_reports} reports: {counts}{'' if rate is None else f' ({rate:.1f} reports/s)'}")
    for line in _work_lines(summary):
        print(line)
    folder = shlex.quote(str(out))
    print(f"records  {out / 'parts'}/part-*.jsonl")
    print(f"next     radtag show {folder} · radtag export {folder} --format csv --out FILE · radtag verify {folder}")
    for status in ("failed", "rejected"):
        if summary.counts[status]:
            print(f"{status:<9}radtag show {folder} --status {status}")


def _work_lines(summary: Summary) -> Iterator[str]:
    n_begun = summary.n_reports - summary.n_resumed
    if n_begun:
        spared = f", {n_begun - summary.n_read} needed none: a record of theirs or of the same text stood"
        yield f"read     {summary.n_read} reports in this start{spared if n_begun > summary.n_read else ''}"
    seconds = {**summary.step_seconds, **{f"stage {stage}": s for stage, s in summary.stage_seconds.items() if s > 0}}
    yield "seconds  " + ", ".join(f"{s:.1f} {name.replace('_', ' ')}" for name, s in seconds.items())
    if summary.tokens:
        yield "tokens   " + ", ".join(f"{n_tokens} {kind.replace('_', ' ')}" for kind, n_tokens in summary.tokens.items())


def _refuse_export_to(out: Path, folder: Path, run: RunFile, *, replace: bool) -> None:
    from pipeline.archive import LOCK_FILE, PARTS, RUN_FILE, SUMMARY_FILE
    from pipeline.sinks import SinkError
    from pipeline.sources import would_find

    try:
        place, own = out.resolve(), folder.resolve()
        exists = out.exists() or out.is_symlink()
        if exists and not out.is_file():
            raise SinkError(f"{out}: is {'a folder' if out.is_dir() else 'no plain file'}; a new file is expected")
        if place.is_relative_to(own / PARTS) or place in (own / RUN_FILE, own / SUMMARY_FILE, own / LOCK_FILE):
            raise SinkError(f"{out}: belongs to the run in {folder}; a new file is expected")
        if would_find(run.input.given, out):
            raise SinkError(f"{out}: lies in the input of the run; a new file beside it is expected")
        if exists and not replace:
            raise SinkError(f"{out}: exists already; a new file is expected, or --replace")
    except OSError as error:
        raise SinkError(f"{out}: cannot be written: {error.strerror or type(error).__name__}") from None


def _check_status(status: str | None) -> None:
    from configs.yaml_lines import did_you_mean
    from pipeline.records import STATUSES
    from pipeline.settings import SettingsError

    if status is not None and status not in STATUSES:
        raise SettingsError(f"status '{status}' is not known{did_you_mean(status, STATUSES)}")


def _task_of(run: RunFile) -> Task | None:
    from configs.schema import ConfigError, load_task

    try:
        return load_task(str(run.settings["task"]))
    except ConfigError as error:
        typer.echo(f"radtag: keys instead of labels ({error})", err=True)
        return None


def _whole_records(folder: Path) -> Iterator[TaggedReport]:
    from pipeline.archive import part_names, require_whole
    from pipeline.records import read_json_lines

    for name in part_names(folder):
        require_whole(folder, name)
        yield from read_json_lines(folder / "parts" / f"{name}.jsonl")


def main() -> None:
    """The `radtag` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Korean or arrows is no reason to end
    app()


if __name__ == "__main__":
    main()

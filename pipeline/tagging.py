"""Tags an archive: checks everything, writes the parts that are missing, sums up."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.archive import (
    Archive,
    ArchiveError,
    RunFile,
    RunInput,
    part_bytes,
    part_names,
    part_problem,
    refuse_other_run,
    started_run,
)
from pipeline.chunks import DEFAULT_CHUNK_REPORTS, Chunk, Plan, chunks, plan
from pipeline.engine import LocalEngine
from pipeline.records import STATUSES
from pipeline.settings import Settings, fingerprint, provenance_parts, with_files
from pipeline.source_files import DEFAULT_ENCODING, known_encoding
from pipeline.sources import Columns, FileSource, SourceError, find_files

# Where a machine or a person decides, not the result: not written into run.json.
PLACE_SETTINGS = {"threads", "gpu_layers"}


@dataclass(frozen=True, slots=True)
class TagRequest:
    """What `radtag tag` was asked. `chunk_reports` None means: as the run began, else the default."""

    given: str
    columns: Columns
    settings: Settings
    out: Path
    encoding: str = DEFAULT_ENCODING
    resume: bool = False
    workers: int = 1
    chunk_reports: int | None = None


class Progress(Protocol):
    """Is told how far a run is."""

    def begin(self, *, n_reports: int, n_done: int) -> None:
        """Once, when the input is known; `n_done` reports stand in whole parts already."""
        ...

    def advance(self, n_reports: int) -> None:
        """After every part that is written."""
        ...


@dataclass(slots=True)
class Summary:
    """How a run ended: the counts are of the whole run, the times of this start alone.

    `seconds` is everything, `tagging_seconds` without the check of the input and the loading of the stages.
    """

    n_reports: int
    n_resumed: int
    counts: dict[str, int]
    seconds: float = 0.0
    tagging_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def reports_per_s(self) -> float | None:
        """None when nothing was tagged."""
        tagged = self.n_reports - self.n_resumed
        return tagged / self.tagging_seconds if tagged and self.tagging_seconds > 0 else None

    def as_object(self) -> dict[str, Any]:
        """summary.json."""
        rate = self.reports_per_s
        return {
            "n_reports": self.n_reports,
            "counts": self.counts,
            "n_resumed": self.n_resumed,
            "seconds": round(self.seconds, 3),
            "tagging_seconds": round(self.tagging_seconds, 3),
            "reports_per_s": None if rate is None else round(rate, 3),
            "stage_seconds": {stage: round(s, 3) for stage, s in self.stage_seconds.items()},
            "peak_memory_mib": peak_memory_mib(),
            "fingerprint": self.fingerprint,
        }


def tag_archive(request: TagRequest, progress: Progress) -> Summary:
    """Writes every part that is not whole yet, and the summary; nothing before all input was checked and the stages are loaded.

    Raises:
        SourceError, ArchiveError, SettingsError, ConfigError, EncoderError, ModelFileError, EngineError, StageBugError
    """
    begin = time.perf_counter()
    before = started_run(request.out, resume=request.resume)
    chunk_reports = _chunk_reports(request, before)
    _refuse_out_in_input(request)
    source = FileSource(find_files(request.given), request.columns, known_encoding(request.encoding))
    filled = with_files(request.settings)
    parts = provenance_parts(filled)
    whole_plan = plan(source, chunk_reports=chunk_reports)
    run = _run_file(request, source, parts, whole_plan, chunk_reports)
    if before is not None:
        refuse_other_run(request.out, before, run)
    done = _whole_parts(request.out, whole_plan)
    sizes = _sizes(whole_plan, chunk_reports)
    summary = Summary(
        n_reports=whole_plan.n_reports,
        n_resumed=sum(sizes[name] for name in done),
        counts=dict.fromkeys(STATUSES, 0),
        fingerprint=run.fingerprint,
    )
    for name in done:
        _add_counts(summary.counts, part_bytes(request.out, name))
    if len(done) == len(whole_plan.names):
        with Archive.opened(request.out, run, resume=request.resume) as archive:
            progress.begin(n_reports=summary.n_reports, n_done=summary.n_resumed)
            return _summed_up(archive, summary, begin)
    with (
        LocalEngine(filled, {"fingerprint": run.fingerprint}, workers=request.workers) as engine,
        Archive.opened(request.out, run, resume=request.resume) as archive,
    ):
        progress.begin(n_reports=summary.n_reports, n_done=summary.n_resumed)
        ready = time.perf_counter()
        for part in engine.tag(_missing(source, whole_plan, done, chunk_reports)):
            archive.write_part(part.name, part.records, n_records=part.n_records)
            _add_counts(summary.counts, part.records)
            for stage, s in part.stage_seconds.items():
                summary.stage_seconds[stage] = summary.stage_seconds.get(stage, 0.0) + s
            progress.advance(part.n_records)
        summary.tagging_seconds = time.perf_counter() - ready
        return _summed_up(archive, summary, begin)


def peak_memory_mib() -> int:
    """Of this process, or of its largest finished child when that had more."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // unit


def _summed_up(archive: Archive, summary: Summary, begin: float) -> Summary:
    summary.seconds = time.perf_counter() - begin
    archive.write_summary(summary.as_object())
    return summary


def _refuse_out_in_input(request: TagRequest) -> None:
    """The records would be input of the next start."""
    given, out = Path(request.given).resolve(), request.out.resolve()
    if out.is_relative_to(given) and given.is_dir():
        raise ArchiveError(f"{request.out}: lies inside the input folder {request.given}; give --out a folder beside it")


def _chunk_reports(request: TagRequest, before: RunFile | None) -> int:
    if before is None:
        return request.chunk_reports or DEFAULT_CHUNK_REPORTS
    if request.chunk_reports not in (None, before.chunk_reports):
        raise ArchiveError(f"{request.out}: was begun with {before.chunk_reports} reports a part; go on without --chunk-reports")
    return before.chunk_reports


def _run_file(request: TagRequest, source: FileSource, parts: dict[str, str], whole_plan: Plan, chunk_reports: int) -> RunFile:
    columns = request.columns
    given = Path(request.given)
    return RunFile(
        fingerprint=fingerprint(parts),
        provenance=parts,
        settings=request.settings.model_dump(mode="json", exclude=PLACE_SETTINGS),
        chunk_reports=chunk_reports,
        input=RunInput(
            given=str(given.resolve() if given.exists() else given.absolute()),  # a glob stays one
            report_id_column=columns.report_id,
            text_column=columns.text,
            patient_column=columns.patient_id,
            date_column=columns.study_date,
            encoding=source.encoding,
            n_reports=whole_plan.n_reports,
            content_hash=whole_plan.content_hash,
        ),
    )


def _whole_parts(folder: Path, whole_plan: Plan) -> list[str]:
    known = set(whole_plan.names)
    strange = [name for name in part_names(folder) if name not in known]
    if strange:
        raise ArchiveError(f"{folder}: holds {strange[0]}, which is no part of this input; give --out a new folder")
    return [name for name in whole_plan.names if part_problem(folder, name) is None]


def _sizes(whole_plan: Plan, chunk_reports: int) -> dict[str, int]:
    last = len(whole_plan.names) - 1
    rest = whole_plan.n_reports - chunk_reports * last
    return {name: rest if index == last else chunk_reports for index, name in enumerate(whole_plan.names)}


def _missing(source: FileSource, whole_plan: Plan, done: list[str], chunk_reports: int) -> Iterator[Chunk]:
    skip = set(done)
    n_chunks = 0
    for chunk in chunks(source, chunk_reports=chunk_reports):
        if n_chunks == len(whole_plan.names) or chunk.name != whole_plan.names[n_chunks]:
            raise SourceError(f"{source.files[0]}: input changed while it was tagged; begin again with a new --out")
        n_chunks += 1
        if chunk.name not in skip:
            yield chunk
    if n_chunks < len(whole_plan.names):
        raise SourceError(f"{source.files[0]}: input became shorter while it was tagged; begin again with a new --out")


def _add_counts(counts: dict[str, int], records: bytes) -> None:
    """Counted in the bytes, which spares parsing: quotes inside an id are escaped, so each pattern is the field itself."""
    for status in STATUSES:
        counts[status] += records.count(f'"status":"{status}"'.encode())

"""Tags an archive: checks everything, writes the parts that are missing, sums up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from pipeline.archive import (
    PARTS,
    RUN_FILE,
    SUMMARY_FILE,
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
from pipeline.chunks import DEFAULT_CHUNK_REPORTS, Plan, plan
from pipeline.engine import Engine, LocalEngine
from pipeline.metrics import metrics_problem, write_metrics
from pipeline.missing import FAILED, MissingChunks
from pipeline.row_filter import row_filter
from pipeline.settings import PLACE_SETTINGS, Settings, SettingsError, fingerprint, provenance_parts, with_files
from pipeline.source_files import DEFAULT_ENCODING, known_encoding
from pipeline.sources import Columns, FileSource, find_files, would_find
from pipeline.summary import Summary

METRICS_EVERY_S = 10.0
SOME_PART = f"part-000000-{'0' * 16}.jsonl"
EngineName = Literal["local", "ray"]
ENGINES: tuple[str, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True)
class TagRequest:
    """What `radtag tag` was asked.

    Attributes:
        retry_failed: Tags the failed reports of whole parts again; needs `resume`.
        chunk_reports: None means: as the run began, else the default.
        where: Conditions of `pipeline.row_filter`, all of which must hold.
        limit: Only so many reports, the first that fit; None means all.
        ray_address: Of a Ray cluster that runs already; None means one on this machine for this run.
        gpus_per_worker: What each Ray actor asks of its cluster.
        metrics: File for the figures in Prometheus text format; None means none.
        tag_once: Whether a text that stood before is taken over; changes no record.
    """

    given: str
    columns: Columns
    settings: Settings
    out: Path
    encoding: str = DEFAULT_ENCODING
    resume: bool = False
    retry_failed: bool = False
    workers: int = 1
    chunk_reports: int | None = None
    where: tuple[str, ...] = ()
    limit: int | None = None
    engine: EngineName = "local"
    ray_address: str | None = None
    gpus_per_worker: float = 0.0
    metrics: Path | None = None
    tag_once: bool = True


class Progress(Protocol):
    """Is told how far a run is."""

    def begin(self, *, n_reports: int, n_done: int) -> None:
        """Once, when the input is known; `n_done` reports stand in whole parts already."""
        ...

    def advance(self, n_reports: int) -> None:
        """After every part that is written."""
        ...

    def warn(self, warning: str) -> None:
        """What was asked for and cannot be had; before `begin`."""
        ...


def tag_archive(request: TagRequest, progress: Progress) -> Summary:
    """Writes every part that is not whole yet, and the summary; nothing before all input was checked and the stages are loaded.

    Raises:
        SourceError, RowFilterError, ArchiveError, SettingsError, ConfigError, EncoderError, ModelFileError, EngineError,
        StageBugError, SinkError
    """
    begin = time.perf_counter()
    before = started_run(request.out, resume=request.resume)
    chunk_reports = _chunk_reports(request, before)
    _refuse_places(request)
    source = FileSource(
        find_files(request.given), request.columns, known_encoding(request.encoding), row_filter(request.where), request.limit
    )
    filled = with_files(request.settings)
    parts = provenance_parts(filled)
    whole_plan = plan(source, chunk_reports=chunk_reports)
    run = _run_file(request, source, parts, whole_plan, chunk_reports)
    if before is not None:
        refuse_other_run(request.out, before, run)
    summary = _summary(run, whole_plan)
    summary.warnings.extend((*_without_effect(request, filled), *_other_encoder(filled)))
    summary.step_seconds["check_input"] = time.perf_counter() - begin
    with ExitStack() as stack:
        engine: Engine | None = None
        if before is None:  # a new folder is made once the stages are loaded
            with summary.step("load"):
                engine = stack.enter_context(_engine(request, filled, run.fingerprint))
        archive = stack.enter_context(Archive.opened(request.out, run, resume=request.resume))
        with summary.step("check_input"):  # behind the lock: until then another run may have written parts
            missing = _missing_chunks(request, source, whole_plan, chunk_reports)
            _count_standing(summary, missing)
        n_parts_left = len(whole_plan.names) - len(missing.done)
        if engine is None and n_parts_left:
            with summary.step("load"):
                engine = stack.enter_context(_engine(request, filled, run.fingerprint))
        archive.begin_parts(missing=set(whole_plan.names) - missing.done - missing.retried, retried=missing.retried)
        for warning in summary.warnings:
            progress.warn(warning)
        progress.begin(n_reports=summary.n_reports, n_done=summary.n_resumed)
        if engine is not None and n_parts_left:
            with summary.step("tag"):
                _tag_missing(request, engine, missing, archive, summary, progress, begin)
        summary.finished = True
        summary.seconds = time.perf_counter() - begin
        archive.write_summary(summary.as_object())
        if request.metrics is not None:
            write_metrics(request.metrics, summary.as_object())
        return summary


def _tag_missing(
    request: TagRequest,
    engine: Engine,
    missing: MissingChunks,
    archive: Archive,
    summary: Summary,
    progress: Progress,
    begin: float,
) -> None:
    last = time.monotonic()
    for part in engine.tag(missing):
        with summary.step("write"):
            archive.write_part(part.name, part.records, n_records=part.n_records)
        summary.add_records(part.records)
        summary.add_work(n_read=part.n_read, stage_seconds=part.stage_seconds, tokens=part.tokens)
        progress.advance(part.n_records)
        if request.metrics is not None and time.monotonic() - last >= METRICS_EVERY_S:
            last = time.monotonic()
            summary.seconds = time.perf_counter() - begin
            write_metrics(request.metrics, summary.as_object())


def _engine(request: TagRequest, filled: Settings, run_fingerprint: str) -> AbstractContextManager[Engine]:
    provenance = {"fingerprint": run_fingerprint}
    if request.engine == "local":
        return LocalEngine(filled, provenance, workers=request.workers)
    from pipeline.ray_engine import RayEngine

    return RayEngine(
        filled, provenance, workers=request.workers, address=request.ray_address, gpus_per_worker=request.gpus_per_worker
    )


def _missing_chunks(request: TagRequest, source: FileSource, whole_plan: Plan, chunk_reports: int) -> MissingChunks:
    whole = _whole_parts(request.out, whole_plan)
    retried = frozenset(name for name in whole if request.retry_failed and FAILED in part_bytes(request.out, name))
    return MissingChunks(
        source, whole_plan, chunk_reports, request.out, whole - retried, retried=retried, tag_once=request.tag_once
    )


def _summary(run: RunFile, whole_plan: Plan) -> Summary:
    return Summary(
        task=run.provenance["task"],
        system=run.provenance["system"],
        fingerprint=run.fingerprint,
        n_reports=whole_plan.n_reports,
        n_repeated=len(whole_plan.repeats),
    )


def _count_standing(summary: Summary, missing: MissingChunks) -> None:
    """Counts what stands already. Parts that are only retried do not: they are counted when they are written."""
    sizes = _sizes(missing.plan, missing.chunk_reports)
    for name in missing.done:
        summary.n_resumed += sizes[name]
        summary.add_records(part_bytes(missing.folder, name))


def _without_effect(request: TagRequest, filled: Settings) -> Iterator[str]:
    """What was asked for in vain. On Ray the nodes' llama.cpp counts, which may differ from the one here."""
    if request.engine == "local" and filled.gpu_layers != 0 and filled.model is not None and not _offloads():
        no_effect = f"--gpu-layers {filled.gpu_layers} has no effect"
        yield f"{no_effect}: llama.cpp is built without GPU offload, the model runs on the processor"


def _other_encoder(filled: Settings) -> Iterator[str]:
    """A combination is allowed with an encoder that it was not fitted with: a hospital may use its own."""
    if filled.encoder is None or filled.adapter is None or not filled.weighs:
        return
    from stage1_encoder.encoder import weights_hash
    from stage1_encoder.pair_encoder import pairs_hash
    from stage2_relations.combine import COMBINE_FILE, fitted_with

    path = filled.adapter / COMBINE_FILE
    if not path.is_file():
        return
    fitted, again = fitted_with(path), "'radtag train combine' fits it again"
    if fitted.encoder != (found := weights_hash(filled.encoder)):
        was_is = f"was fitted with encoder {fitted.encoder[:12]}, and {filled.encoder} is {found[:12]}"
        yield f"{path}: {was_is}: probabilities may be off; {again}"
    if not filled.pairs or fitted.pairs == (pairs := pairs_hash(filled.encoder)):
        return
    if fitted.pairs is not None and pairs is not None:
        yield f"{path}: was fitted with another pair encoder than that in {filled.encoder}: probabilities may be off; {again}"
        return
    was, has = ("without a", "holds one") if fitted.pairs is None else ("with a", "has none")
    yield f"{path}: was fitted {was} pair encoder, and {filled.encoder} {has}: none reads; {again}"


def _offloads() -> bool:
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def _refuse_places(request: TagRequest) -> None:
    """Records inside the input would be input of the next start; a metrics file that cannot be written is told at the beginning."""
    given, out = Path(request.given).resolve(), request.out.resolve()
    if out.is_relative_to(given) and given.is_dir():
        raise ArchiveError(f"{request.out}: lies inside the input folder {request.given}; give --out a folder beside it")
    if any(would_find(request.given, request.out / name) for name in (f"{PARTS}/{SOME_PART}", RUN_FILE, SUMMARY_FILE)):
        raise ArchiveError(f"{request.out}: its records would fit the input pattern {request.given}; give --out a folder beside it")
    if request.metrics is not None and (problem := metrics_problem(request.metrics)) is not None:
        raise SettingsError(f"--metrics {problem}")


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
            where=request.where,
            limit=request.limit,
        ),
    )


def _whole_parts(folder: Path, whole_plan: Plan) -> frozenset[str]:
    known = set(whole_plan.names)
    strange = [name for name in part_names(folder) if name not in known]
    if strange:
        raise ArchiveError(f"{folder}: holds {strange[0]}, which is no part of this input; give --out a new folder")
    return frozenset(name for name in whole_plan.names if part_problem(folder, name) is None)


def _sizes(whole_plan: Plan, chunk_reports: int) -> dict[str, int]:
    last = len(whole_plan.names) - 1
    rest = whole_plan.n_reports - chunk_reports * last
    return {name: rest if index == last else chunk_reports for index, name in enumerate(whole_plan.names)}

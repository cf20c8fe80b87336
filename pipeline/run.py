"""One report from text to record: `Pipeline.tag` is the whole product in ten lines, `build_pipeline` puts its stages together."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from configs.contracts import (
    EntityFinding,
    EntityFlags,
    Flagger,
    LanguageModel,
    Reading,
    RelationMapper,
    Report,
    Status,
    SubjectReader,
    TaggedReport,
    Unread,
)
from configs.schema import Task, load_task
from pipeline.settings import Settings, SettingsError, uses_pairs
from pipeline.text_as_given import DEFAULT_MAX_REPORT_CHARS, StageText, UnusableRow, stage_text, text_problem

Row = TypeVar("Row")
BUG_FRAMES = 6
Answer = TypeVar("Answer")


class StageBugError(Exception):
    """A stage that raises for every report of a batch: its frames, and never its message, which may quote a report."""


class Pipeline:
    """Flags, hints and relations for batches of reports.

    Args:
        flagger: Stage 1, or None for systems without it: then no hints are given.
        mapper: Stage 2, or None for the encoder alone: then stage 1 decides the entities and there are no relations.
        provenance: Goes into every record as it is.

    Attributes:
        stage_seconds: Wall time spent in each stage since the pipeline was built.
    """

    def __init__(
        self,
        task: Task,
        flagger: Flagger | None,
        mapper: RelationMapper | None,
        provenance: Mapping[str, str],
        *,
        max_report_chars: int = DEFAULT_MAX_REPORT_CHARS,
    ) -> None:
        if flagger is None and mapper is None:
            raise ValueError("a pipeline needs a flagger, a mapper or both")
        self.task = task
        self.flagger = flagger
        self.mapper = mapper
        self.provenance = dict(provenance)
        self.max_report_chars = max_report_chars
        self.stage_seconds = {"encoder": 0.0, "relations": 0.0}

    def tag(self, reports: Sequence[Report]) -> list[TaggedReport]:
        """One record a report, in order. Reports of equal text are read once."""
        problems = [self._refusal(report) for report in reports]
        given = {report.text: report for report, problem in zip(reports, problems, strict=True) if problem is None}
        texts = {text: stage_text(text) for text in given}
        readable = [replace(report, text=texts[text].text) for text, report in given.items()]
        flags = self._flags(readable)
        readings = dict(zip(given, self._readings(readable, flags), strict=True))
        hints = {text: flag.hinted if isinstance(flag, EntityFlags) else None for text, flag in zip(given, flags, strict=True)}
        return [
            self._refused(report, problem)
            if problem is not None
            else self._record(report, texts[report.text], hints[report.text], readings[report.text])
            for report, problem in zip(reports, problems, strict=True)
        ]

    def _refusal(self, report: Report) -> str | None:
        if isinstance(report, UnusableRow):
            return report.problem
        return text_problem(report.text, max_chars=self.max_report_chars)

    def _flags(self, reports: Sequence[Report]) -> list[EntityFlags | Unread | None]:
        flagger = self.flagger
        if flagger is None or not reports:
            return [None] * len(reports)
        begin = time.perf_counter()
        flags = _row_by_row_after_error(lambda rows: flagger.flag([report.text for report in rows]), list(reports), "stage 1")
        self.stage_seconds["encoder"] += time.perf_counter() - begin
        return list(flags)

    def _readings(self, reports: Sequence[Report], flags: Sequence[EntityFlags | Unread | None]) -> list[Reading | Unread]:
        mapper = self.mapper
        if mapper is None:
            return [_encoder_reading(self.task, report, flag) for report, flag in zip(reports, flags, strict=True)]
        rows = [(report, flag) for report, flag in zip(reports, flags, strict=True) if not isinstance(flag, Unread)]
        begin = time.perf_counter()
        answers = _row_by_row_after_error(lambda some: mapper.relate([r for r, _ in some], [f for _, f in some]), rows, "stage 2")
        self.stage_seconds["relations"] += time.perf_counter() - begin
        read = iter(answers)
        return [flag if isinstance(flag, Unread) else next(read) for flag in flags]

    def _refused(self, report: Report, problem: str) -> TaggedReport:
        return self._tagged(report, "rejected", None, None, problem)

    def _record(self, report: Report, text: StageText, hints: tuple[str, ...] | None, reading: Reading | Unread) -> TaggedReport:
        if isinstance(reading, Unread):
            return self._tagged(report, "failed", None, hints, reading.problem)
        entities = tuple(replace(e, spans=tuple(text.as_given(span) for span in e.spans)) for e in reading.entities)
        relations = tuple(
            replace(
                relation,
                subject_span=None if relation.subject_span is None else text.as_given(relation.subject_span),
                value_span=None if relation.value_span is None else text.as_given(relation.value_span),
            )
            for relation in reading.relations
        )
        status: Status = "ok" if any(finding.present for finding in entities) else "no_findings"
        return self._tagged(report, status, Reading(entities, relations), hints, None)

    def _tagged(
        self, report: Report, status: Status, reading: Reading | None, hints: tuple[str, ...] | None, problem: str | None
    ) -> TaggedReport:
        entities, relations = (None, None) if reading is None else (reading.entities, reading.relations)
        about = (report.patient_id, report.study_date)
        return TaggedReport(report.report_id, self.task.name, status, entities, relations, hints, problem, self.provenance, *about)


def build_pipeline(filled: Settings, provenance: Mapping[str, str]) -> Pipeline:
    """The stages of `filled.system`, loaded. `filled` comes from `pipeline.settings.with_files`.

    Raises:
        ConfigError, SettingsError, EncoderError, ModelFileError: a task file, weights or model that cannot be used.
    """
    task = load_task(filled.task)
    flagger: Flagger | None = None
    if filled.needs_encoder:
        if filled.encoder is None:
            raise ValueError("settings without encoder weights: call with_files first")
        from stage1_encoder.encoder import Encoder

        flagger = Encoder.load(filled.encoder, task=task, threads=filled.threads)
    return Pipeline(task, flagger, _mapper(task, filled), provenance, max_report_chars=filled.max_report_chars)


def _mapper(task: Task, filled: Settings) -> RelationMapper | None:
    if filled.needs_model:
        return _server_mapper(task, filled) if filled.server is not None else _model_mapper(task, filled)
    if filled.system == "encoder":
        return None
    if filled.system == "encoders":
        return _encoders_mapper(task, filled)
    from stage2_relations.rules import CarefulRules, PublishedRules

    return CarefulRules(task) if filled.system == "rules" else PublishedRules(task)


def _encoders_mapper(task: Task, filled: Settings) -> RelationMapper:
    if filled.adapter is None:
        raise ValueError("settings without a combination: call with_files first")
    from stage2_relations.combine import COMBINE_FILE, load_combination
    from stage2_relations.score import BranchMapper

    combination = load_combination(filled.adapter / COMBINE_FILE, task_name=task.name, adapter=None, readers="pairs")
    return BranchMapper(task, None, combination, pairs=_pair_encoder(task, filled), grounding=filled.grounding)


def _model_mapper(task: Task, filled: Settings) -> RelationMapper:
    if filled.model is None:
        raise ValueError("settings without a model file: call with_files first")
    from stage2_relations.adapter_folder import adapter_file
    from stage2_relations.llama_cpp import LlamaCppModel

    adapter = None if filled.adapter is None else adapter_file(filled.adapter)
    model = LlamaCppModel.load(filled.model, gpu_layers=filled.gpu_layers, threads=filled.threads, adapter=adapter)
    if filled.read == "score":
        from stage2_relations.combine import COMBINE_FILE, Readers, load_combination
        from stage2_relations.score import BranchMapper

        if filled.adapter is None or not filled.adapter.is_dir():
            raise SettingsError(f"--read score needs --adapter FOLDER with {COMBINE_FILE}, which 'radtag train combine' writes")
        path, pairs = filled.adapter / COMBINE_FILE, _pair_encoder(task, filled)
        readers: Readers = "model" if pairs is None else "model and pairs"
        combination = load_combination(path, task_name=task.name, adapter=model.adapter_hash, readers=readers)
        return BranchMapper(task, model, combination, pairs=pairs, grounding=filled.grounding)
    return _answers_mapper(task, model, filled)


def _pair_encoder(task: Task, filled: Settings) -> SubjectReader | None:
    """That of the encoder's folder, where it holds one and the weights beside the adapter were fitted with one."""
    if not uses_pairs(filled) or filled.encoder is None:
        return None
    from stage1_encoder.pair_encoder import PairEncoder

    return PairEncoder.load(filled.encoder, task=task)


def _server_mapper(task: Task, filled: Settings) -> RelationMapper:
    if filled.server is None or filled.server_model is None:
        raise ValueError("settings without a server: pipeline.settings.settings checks them")
    from stage2_relations.concurrent import ConcurrentMapper
    from stage2_relations.openai_http import OpenAIHttpModel

    model = OpenAIHttpModel(
        filled.server,
        filled.server_model,
        timeout_s=filled.server_timeout_s,
        connections=filled.http_concurrency,
        plain=filled.server_plain,
    )
    mapper = _answers_mapper(task, model, filled)
    return mapper if filled.http_concurrency == 1 else ConcurrentMapper(mapper, n_at_once=filled.http_concurrency)


def _answers_mapper(task: Task, model: LanguageModel, filled: Settings) -> RelationMapper:
    """One that lets the model write its answers, and reads again with the worked examples in other orders where that is wanted."""
    from stage2_relations.relate import LanguageModelMapper
    from stage2_relations.stability import StabilityMapper

    first, *again = (
        LanguageModelMapper(task, model, grounding=filled.grounding, examples_seed=seed)
        for seed in (None, *range(1, filled.rereads + 1))
    )
    return StabilityMapper(first, again) if again else first


def _encoder_reading(task: Task, report: Report, flags: EntityFlags | Unread | None) -> Reading | Unread:
    """Stage 1 alone: an entity is present when it is decided; its spans are the asserted mentions that the text holds."""
    if isinstance(flags, Unread):
        return flags
    if flags is None:
        raise ValueError("the encoder alone decides nothing without flags")
    from stage2_relations.assertion import read_mentions

    asserted = [mention for mention in read_mentions(task, report.text).entities if mention.assertion == "present"]
    return Reading(
        entities=tuple(
            EntityFinding(
                key=key,
                present=key in flags.decided,
                confidence=flags.probability[key],
                spans=tuple(mention.span for mention in asserted if mention.name == key and key in flags.decided),
            )
            for key in task.keys
        ),
        relations=(),
    )


def _row_by_row_after_error(read: Callable[[list[Row]], Sequence[Answer]], rows: list[Row], stage: str) -> list[Answer | Unread]:
    """`read(rows)`; when it raises, every row alone, so that one report cannot take its batch with it.

    A row that raises alone becomes Unread.

    Raises:
        StageBugError: each of several rows raises an exception that is not a stage's own: no row is to blame.
    """
    if not rows:
        return []
    try:
        return _one_a_row(read, rows)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # becomes a failed record or goes up, never silence
        if len(rows) == 1:
            return [Unread(_row_problem(error, stage))]
    answers: list[Answer | Unread] = []
    bugs: list[Exception] = []
    for row in rows:
        try:
            answers.extend(_one_a_row(read, [row]))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            answers.append(Unread(_row_problem(error, stage)))
            if not _is_stage_error(error):
                bugs.append(error)
    if len(bugs) == len(rows):
        raise StageBugError(
            f"{stage}: {type(bugs[0]).__name__} for each of {len(rows)} reports: a fault of the program or its installation "
            f"(innermost frame last: {_frames(bugs[0])})"
        ) from None
    return answers


def _one_a_row(read: Callable[[list[Row]], Sequence[Answer]], rows: list[Row]) -> list[Answer | Unread]:
    answers = list(read(rows))
    if len(answers) != len(rows):
        raise ValueError(f"{len(answers)} answers to {len(rows)} reports")
    return [*answers]


def _is_stage_error(error: Exception) -> bool:
    """The stages' own errors promise to hold no report text; a module that is not loaded cannot have raised one."""
    known = (("stage1_encoder.encoder", "EncoderError"), ("stage2_relations.language_model", "LanguageModelError"))
    return any(isinstance(error, getattr(sys.modules[module], name)) for module, name in known if module in sys.modules)


def _row_problem(error: Exception, stage: str) -> str:
    if _is_stage_error(error):
        return f"{stage}: {error}"
    return f"{stage}: {type(error).__name__} at {_frames(error, n_frames=1)}"  # the message may quote the report


def _frames(error: Exception, *, n_frames: int = BUG_FRAMES) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-n_frames:]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)

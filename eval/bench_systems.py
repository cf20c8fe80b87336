"""Whole systems side by side on the reports of the corpus dev split: time a report, and pair F1 beside it. Never a test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.contracts import Report, TaggedReport
from configs.schema import Task
from eval.bench_langextract import LangExtract, langextract_missing, llama_server, process_cpu_s
from eval.bench_published import FromScratch, PublishedWay
from eval.bench_timing import Timing, Way, time_ways
from eval.gold import GoldReport, Labels, ScoredPair
from eval.score import score
from pipeline.run import Pipeline, build_pipeline
from pipeline.settings import settings, with_files
from stage2_relations.llama_cpp import DEFAULT_CONTEXT_TOKENS, LlamaCppModel

DEV_SPLITS = Path(__file__).resolve().parent.parent / "training" / "corpus"
TWO_STAGE, PUBLISHED, PROMPT_ALONE = "two-stage", "published way", "published way, prompt alone"
LANGEXTRACT, RULES, ENCODER, ENCODERS = "langextract", "rules", "encoder", "encoders"
COMPARED = (TWO_STAGE, PUBLISHED, PROMPT_ALONE, LANGEXTRACT, RULES, ENCODER, ENCODERS)


@dataclass(frozen=True, slots=True)
class SystemFigures:
    """One system. F1 in [0, 1]; nan: undefined, or the system states no pairs. `note`: what must be known to read the row."""

    timing: Timing
    pair_macro_f1: float
    pair_micro_f1: float
    key_micro_f1: float
    n_scored: int
    n_failed: int
    note: str

    def as_object(self) -> dict[str, Any]:
        """For results.json; undefined is null."""
        return self.timing.as_object() | {
            "pair_macro_f1": _or_none(self.pair_macro_f1),
            "pair_micro_f1": _or_none(self.pair_micro_f1),
            "key_micro_f1": _or_none(self.key_micro_f1),
            "n_scored": self.n_scored,
            "n_failed": self.n_failed,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class SystemsBench:
    """By name; `missing` says why a system of COMPARED was not measured."""

    timings: Mapping[str, Timing]
    figures: Mapping[str, SystemFigures]
    missing: Mapping[str, str]


Labelled = Callable[[Sequence[Report]], list[Labels | None]]


def dev_split(task: Task) -> Path:
    """The annotated reports that the bench may use."""
    return DEV_SPLITS / task.name / "dev.jsonl"


def spread(gold: Sequence[GoldReport], n_reports: int) -> list[GoldReport]:
    """`n_reports` of them, evenly spaced; all when there are not more."""
    if n_reports >= len(gold):
        return list(gold)
    return [gold[place * len(gold) // n_reports] for place in range(n_reports)]


def reports_of(gold: Sequence[GoldReport]) -> list[Report]:
    """Their texts; those without one are left out."""
    return [Report(report.report_id, report.text) for report in gold if report.text is not None]


def bench_systems(
    task: Task,
    timed: Sequence[GoldReport],
    scored: Sequence[GoldReport],
    *,
    n_runs: int,
    tell: Callable[[str], None] = lambda line: None,
) -> SystemsBench:
    """Times every system on `timed` and scores it on `scored` (without reading again where both are the same)."""
    with ExitStack() as stack:
        ways, labels, notes, missing = _ways(task, stack)
        timings = time_ways(ways, reports_of(timed), n_runs=n_runs, tell=tell)
        figures = {}
        for way in ways:
            answers = timings[way.name].answers
            if [r.report_id for r in scored] != [r.report_id for r in timed] and way.name != PROMPT_ALONE:
                tell(f"{way.name}: reads {len(scored)} reports for its F1")
                answers = way.read(reports_of(scored))
            figures[way.name] = _figures(task, timings[way.name], scored, labels[way.name](answers), notes[way.name]())
    return SystemsBench(timings, figures, missing)


def _ways(
    task: Task, stack: ExitStack
) -> tuple[list[Way], dict[str, Callable[[Any], list[Labels | None] | None]], dict[str, Callable[[], str]], dict[str, str]]:
    two_stage_settings = with_files(settings(task=str(task.path), threads=1))
    if two_stage_settings.model is None:
        raise ValueError("two-stage settings without a model file: with_files fills it in")
    model_file = two_stage_settings.model
    two_stage = build_pipeline(two_stage_settings, {})
    model = LlamaCppModel.load(model_file, threads=1)
    stack.callback(model.close)
    published = PublishedWay(task, FromScratch(model))
    prompt_alone = PublishedWay(task, FromScratch(model), answer_tokens=1)
    pipelines = {
        TWO_STAGE: two_stage,
        PUBLISHED: Pipeline(task, two_stage.flagger, published, {}),
        PROMPT_ALONE: Pipeline(task, two_stage.flagger, prompt_alone, {}),
        RULES: build_pipeline(with_files(settings(task=str(task.path), system="rules", threads=1)), {}),
        ENCODER: build_pipeline(with_files(settings(task=str(task.path), system="encoder", threads=1)), {}),
        ENCODERS: build_pipeline(with_files(settings(task=str(task.path), system="encoders", threads=1)), {}),
    }
    ways = [Way(name, pipeline.tag) for name, pipeline in pipelines.items()]
    labels: dict[str, Callable[[Any], list[Labels | None] | None]] = dict.fromkeys(pipelines, record_labels)
    labels[PROMPT_ALONE] = lambda answers: None
    how = "scores with the shipped adapter" if two_stage_settings.read == "score" else "answers under a grammar, no adapter"
    notes: dict[str, Callable[[], str]] = {
        TWO_STAGE: lambda: f"default settings: {how}",
        PUBLISHED: lambda: _published_note(published),
        PROMPT_ALONE: lambda: "a lower bound: the same prompts, one token of answer",
        RULES: lambda: "careful rules, no model",
        ENCODER: lambda: "stage 1 alone states no pairs",
        ENCODERS: lambda: "both encoders and the rules, no language model",
    }
    missing = {}
    if (reason := langextract_missing()) is not None:
        missing[LANGEXTRACT] = reason
    else:
        address, pid = stack.enter_context(llama_server(model_file, context_tokens=DEFAULT_CONTEXT_TOKENS))
        extractor = LangExtract(task, address)
        ways.append(Way(LANGEXTRACT, extractor.read, other_cpu_s=partial(process_cpu_s, pid)))
        labels[LANGEXTRACT] = lambda answers: list(answers)
        notes[LANGEXTRACT] = lambda: _langextract_note(extractor)
    return ways, labels, notes, missing


def _published_note(way: PublishedWay) -> str:
    return (
        f"greedy (published: 5 beams); {way.n_answer_tokens / max(way.n_prompts, 1):.0f} tokens an answer, "
        f"{way.n_cut} of {way.n_prompts} answers cut at the limit"
    )


def _langextract_note(extractor: LangExtract) -> str:
    from eval.bench_langextract import ANSWER_TOKENS, langextract_version

    return (
        f"version {langextract_version()}, llama.cpp server on loopback, JSON mode, at most {ANSWER_TOKENS} tokens an answer; "
        f"{extractor.n_unreadable} answers unreadable over all runs"
    )


def record_labels(records: Sequence[TaggedReport]) -> list[Labels | None]:
    """The labels that records state; None for a failed or rejected one."""
    return [
        None
        if record.entities is None or record.relations is None
        else Labels(
            record.report_id,
            {
                finding.key: frozenset(relation.value for relation in record.relations if relation.subject == finding.key)
                for finding in record.entities
                if finding.present
            },
        )
        for record in records
    ]


def _figures(
    task: Task, timing: Timing, gold: Sequence[GoldReport], predicted: list[Labels | None] | None, note: str
) -> SystemFigures:
    if predicted is None:
        return SystemFigures(timing, math.nan, math.nan, math.nan, 0, 0, note)
    with_text = [report for report in gold if report.text is not None]
    pairs = [ScoredPair(report.labels, labels) for report, labels in zip(with_text, predicted, strict=True)]
    table = score(task, pairs)
    no_pairs = timing.name == ENCODER
    return SystemFigures(
        timing,
        math.nan if no_pairs else table.pair_macro_f1,
        math.nan if no_pairs else table.pair_micro_f1,
        table.key_micro_f1,
        table.n_reports,
        table.n_failed,
        note,
    )


def _or_none(figure: float) -> float | None:
    return None if math.isnan(figure) else round(figure, 4)

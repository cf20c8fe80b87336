"""report.html: one file that opens offline, asks nothing of the network, and shows the errors in the reports' own text.

It holds report text: it belongs where the reports belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from configs.contracts import Span
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Task
from eval.errors import KIND_MEANING, KINDS, ReportError
from eval.figures import Drawing
from eval.gold import Answer, GoldReport
from eval.results import Results, SystemResult
from eval.tables import Table, main_figures, main_rows
from eval.verdict import EXACT_FIGURE, verdict
from pipeline.settings import radtag_version
from pipeline.sinks import whole_file
from pipeline.text_as_given import stage_text, text_problem

TEMPLATE = Path(__file__).parent / "report.html.j2"
MAX_SHOWN_REPORTS = 60  # a system; all errors stand in tables/error_list.csv
HIDDEN_TABLES = frozenset({"error_list"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a report's text. `marks` may be "missed" (a keyword of what was missed) and "extra" (the system read it here)."""

    text: str
    marks: str
    title: str


@dataclass(frozen=True, slots=True)
class ShownReport:
    """One report with its errors; `pieces` is empty where the gold has no text."""

    report_id: str
    style: str | None
    errors: tuple[tuple[str, str], ...]
    pieces: tuple[Piece, ...]


def write_report(
    results: Results, tables: Sequence[Table], figures: Sequence[Drawing], inline: Mapping[str, str], path: Path
) -> None:
    """The page. `inline` has the SVG of each figure by name (`eval.figures.write_figures`). Raises SinkError."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        verdict=verdict(results),
        example_pair=_example_pair(results),
        main_figures=main_figures(results),
        main_rows=main_rows(results),
        leaders={leader.name for figure in EXACT_FIGURE.values() if (leader := results.best(figure)) is not None},
        tables=[table for table in tables if table.name not in HIDDEN_TABLES],
        figures=figures,
        inline=inline,
        errors=[(system, shown_errors(results, system)) for system in results.systems],
        kinds=[(kind, KIND_MEANING[kind]) for kind in KINDS],
        max_shown=MAX_SHOWN_REPORTS,
        version=radtag_version(),
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def shown_errors(results: Results, system: SystemResult) -> list[ShownReport]:
    """The reports that `system` reads wrongly, in gold order."""
    errors: dict[str, list[ReportError]] = {}
    for error in system.errors:
        errors.setdefault(error.report_id, []).append(error)
    return [
        ShownReport(
            report.report_id,
            report.style,
            tuple((error.kind, _sentence(results.task, error)) for error in errors[report.report_id]),
            tuple(_pieces(results.task, report, answer, errors[report.report_id])),
        )
        for report, answer in zip(results.gold, system.answers.answers, strict=True)
        if report.report_id in errors
    ]


def _example_pair(results: Results) -> str:
    """A pair of the task's own, to say what a pair is."""
    task = results.task
    for step in task.steps:
        for subject in results.scope.subjects:
            if step.kind == "relation" and subject in step.subjects:
                return f"{task.label(subject)} → {task.label(task.allowed_values(subject, step)[0])}"
    return ""


def _sentence(task: Task, error: ReportError) -> str:
    if error.kind == "invalid":
        return "no answer" + (f"; gold: {_names(task, error.missed)}" if error.missed else "")
    said = [
        text
        for text in (
            f"missed {_names(task, error.missed)}" if error.missed else "",
            f"said {_names(task, error.extra)}" if error.extra else "",
        )
        if text
    ]
    head = "" if error.subject is None else f"{task.label(error.subject)}: "
    return head + ", ".join(said)


def _names(task: Task, keys: Sequence[str]) -> str:
    return ", ".join(task.label(key) for key in keys)


def _pieces(task: Task, report: GoldReport, answer: Answer, errors: Sequence[ReportError]) -> list[Piece]:
    text = report.text
    if text is None or text_problem(text) is not None:
        return []
    marked = [*_missed_marks(task, text, errors), *_extra_marks(task, answer, errors)]
    cuts = sorted({0, len(text), *(end for span, _, _ in marked for end in (span.start, span.end) if end <= len(text))})
    pieces = []
    for start, end in pairwise(cuts):
        here = [(kind, title) for span, kind, title in marked if span.start <= start and end <= span.end]
        kinds = " ".join(dict.fromkeys(kind for kind, _ in here))
        pieces.append(Piece(text[start:end], kinds, "; ".join(dict.fromkeys(title for _, title in here))))
    return pieces


def _missed_marks(task: Task, text: str, errors: Sequence[ReportError]) -> list[tuple[Span, str, str]]:
    """Where the keywords of what was missed stand; what no keyword knows stays unmarked."""
    read = stage_text(text)
    missed_keys = {key for error in errors if error.subject is None for key in error.missed}
    missed_values = {value for error in errors if error.subject is not None for value in error.missed}
    found: list[Mention] = [m for m in entity_mentions(task, read.text) if m.name in missed_keys]
    found += [m for m in value_mentions(task, read.text) if m.name in missed_values]
    return [(read.as_given(m.span), "missed", f"missed: {task.label(m.name)}") for m in found]


def _extra_marks(task: Task, answer: Answer, errors: Sequence[ReportError]) -> list[tuple[Span, str, str]]:
    """Where the system says that it read what gold does not have."""
    record = answer.record
    if record is None:
        return []
    marks = []
    for error in errors:
        if error.subject is None:
            spans = [(span, f.key) for f in record.entities or () if f.key in error.extra for span in f.spans]
        else:
            wrong = [r for r in record.relations or () if r.subject == error.subject and r.value in error.extra]
            spans = [(r.value_span, r.value) for r in wrong if r.value_span is not None]
        marks += [(span, "extra", f"said: {task.label(name)}") for span, name in spans]
    return marks

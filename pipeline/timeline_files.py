"""A timeline on disk: results.json, CSV tables, the Sankey as SVG, and timeline.html, which opens offline."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.settings import radtag_version
from pipeline.sinks import whole_file
from pipeline.timeline import ALL, Days, Patient, Timeline, Visit, days_of
from pipeline.timeline_drawing import CELL_HEIGHT, CELL_WIDTH, FONT, Axis, Style, axis_of, axis_svg, cell, sankey, strip

TEMPLATE = Path(__file__).parent / "timeline.html.j2"
PAGE, SANKEY, RESULTS = "timeline.html", "sankey.svg", "results.json"
DEFAULT_MAX_STRIPS = 300
NO_FIGURE = "–"
NOTHING_TO_SEE = ("reports", "diagnosis")  # filters whose patients have no course to look at


@dataclass(frozen=True, slots=True)
class StripRow:
    """A line of the page; `strip` is SVG."""

    patient: str
    subject: str
    strip: Any
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    """Patients of one kind."""

    title: str
    axis: Any
    rows: tuple[StripRow, ...]


def write_timeline(found: Timeline, out: Path, *, max_strips: int = DEFAULT_MAX_STRIPS) -> Path:
    """All files in `out`, each whole or as it was before. Returns the page. Raises SinkError."""
    out.mkdir(parents=True, exist_ok=True)
    style = Style.of(found.task, found.step.values)
    drawn = sankey(found, style)
    _write(out / SANKEY, drawn)
    for name, header, rows in tables(found):
        with whole_file(out / f"{name}.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    _write(out / RESULTS, json.dumps(as_object(found), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    _write(out / PAGE, page(found, style, drawn, max_strips=max_strips))
    return out / PAGE


def tables(found: Timeline) -> list[tuple[str, Sequence[str], list[Sequence[object]]]]:
    """Name, header and rows of each CSV file. An empty cell means: undefined."""
    changes = found.changes()
    transitions: list[Sequence[object]] = []
    for subject in (ALL, *found.subjects):
        for before in found.step.values:
            for after in found.step.values:
                some = [c for c in changes if (c.before, c.after) == (before, after) and subject in (ALL, c.subject)]
                if some:
                    n_patients = len({change.patient_id for change in some})
                    days = days_of([change.days for change in some])
                    transitions.append((subject, before, after, len(some), n_patients, *_day_cells(days)))
    intervals = [(name, days.n, *_day_cells(days)) for name, days in found.intervals().items()]
    filters = [(f.name, f.about, f.n_removed, f.n_left) for f in found.filters]
    sequences: list[Sequence[object]] = [
        (c.patient.patient_id, c.subject, len(c.patient.visits), len(c.steps), " > ".join(c.path), c.n_changes, "")
        for c in found.courses
    ]
    sequences += [(patient.patient_id, "", len(patient.visits), "", "", "", name) for patient, name in found.removed]
    return [
        (
            "transitions",
            ("diagnosis", "before", "after", "n_changes", "n_patients", "median_days", "q1_days", "q3_days"),
            transitions,
        ),
        ("intervals", ("diagnosis", "n_intervals", "median_days", "q1_days", "q3_days"), list(intervals)),
        ("filters", ("filter", "about", "n_removed", "n_left"), list(filters)),
        (
            "patients",
            ("patient_id", "diagnosis", "n_reports", "n_reports_with_episode", "course", "n_changes", "removed_by"),
            sequences,
        ),
    ]


def as_object(found: Timeline) -> dict[str, Any]:
    """results.json: counts only; undefined figures are null."""
    changes = Counter((change.subject, change.before, change.after) for change in found.changes())
    return {
        "radtag_timeline": 1,
        "radtag": radtag_version(),
        "task": {"name": found.task.name, "sha256": found.task.content_hash},
        "step": found.step.name,
        "fingerprints": list(found.fingerprints),
        "n_records": found.n_records,
        "n_patients": found.n_patients,
        "problems": asdict(found.problems),
        "filters": [asdict(each) for each in found.filters],
        "n_counted": len(found.courses),
        "n_by_changes": {str(n): count for n, count in sorted(Counter(c.n_changes for c in found.courses).items())},
        "n_repeats": found.n_repeats(),
        "transitions": [{"diagnosis": s, "before": b, "after": a, "n_changes": n} for (s, b, a), n in sorted(changes.items())],
        "interval_days": {name: {k: _null(v) for k, v in asdict(days).items()} for name, days in found.intervals().items()},
    }


def page(found: Timeline, style: Style, drawn: str, *, max_strips: int) -> str:
    """timeline.html."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    values = found.step.values
    matrix = Counter((change.before, change.after) for change in found.changes())
    most = max(matrix.values(), default=1)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"Timelines: {found.task.title}",
        lead=lead(found, style),
        warnings=warnings(found),
        sankey=Markup(drawn),
        n_changes=sum(matrix.values()),
        n_repeats=found.n_repeats(),
        matrix_names=[style.labels[value] for value in values],
        matrix=[
            (
                style.labels[before],
                [(matrix[before, after] or NO_FIGURE, round(0.45 * matrix[before, after] / most, 2)) for after in values],
            )
            for before in values
        ],
        intervals=[_interval_row(found, name, days) for name, days in found.intervals().items()],
        filters=found.filters,
        n_patients=found.n_patients,
        legend=[(Markup(shape), text) for shape, text in _legend(style)],
        sections=_sections(found, style, max_strips=max_strips),
        version=radtag_version(),
        task=found.task.name,
        n_records=found.n_records,
        fingerprints=", ".join(found.fingerprints[:3]) + (" …" if len(found.fingerprints) > 3 else ""),
    )


def lead(found: Timeline, style: Style) -> str:
    """The page in one sentence or two."""
    changes = found.changes()
    counted = f"{len(found.courses)} of {found.n_patients} patients pass every filter"
    if not changes:
        return f"{counted}; no course among them changes."
    changing = sum(course.n_changes > 0 for course in found.courses)
    (before, after), n = Counter((change.before, change.after) for change in changes).most_common(1)[0]
    return (
        f"{counted}. In {changing} of them the course changes, {len(changes)} times in all; the most frequent change is "
        f"{style.labels[before]} → {style.labels[after]} ({n} times)."
    )


def warnings(found: Timeline) -> list[str]:
    """What was left out before any filter, and where the first of it stands."""
    p = found.problems
    sentences = []
    if p.n_without_patient:
        sentences.append(
            f"{p.n_without_patient} of {found.n_records} records have no patient id and are in no timeline; "
            f"first: {p.first_without_patient}."
        )
    if p.n_without_date:
        sentences.append(f"{p.n_without_date} records have no date; their patients are not counted; first: {p.first_without_date}.")
    if p.n_unreadable_date:
        sentences.append(
            f"{p.n_unreadable_date} records have a date that cannot be read (--date-format says how it is written); "
            f"their patients are not counted; first: {p.first_unreadable_date}."
        )
    if p.n_unread:
        sentences.append(
            f"{p.n_unread} records are failed or rejected: their state is unknown (a dashed ?), and their patients are not counted."
        )
    if len(found.fingerprints) > 1:
        sentences.append(f"The records come from {len(found.fingerprints)} different systems or versions (fingerprints).")
    return sentences


def _sections(found: Timeline, style: Style, *, max_strips: int) -> list[Section]:
    courses = sorted(found.courses, key=lambda c: (found.subjects.index(c.subject), c.path, c.patient.patient_id))
    shown = courses[:max_strips]
    axis = axis_of(course.patient for course in shown)
    counted = tuple(
        StripRow(
            c.patient.patient_id,
            found.task.label(c.subject),
            Markup(strip(c.patient, c.subject, axis, style)),
            f"{c.n_changes} change{'' if c.n_changes == 1 else 's'}",
        )
        for c in shown
    )
    order = {each.name: place for place, each in enumerate(found.filters)}
    others = [(patient, name) for patient, name in found.removed if name not in NOTHING_TO_SEE]
    others.sort(key=lambda item: (order[item[1]], item[0].patient_id))
    shown_others = others[:max_strips]
    other_axis = axis_of(patient for patient, _ in shown_others)
    reasons = {each.name: each.reason for each in found.filters}
    rest = tuple(row for patient, name in shown_others for row in _other_rows(found, patient, reasons[name], other_axis, style))
    few = len(found.removed) - len(others)
    n_others = f"{_first_of(len(shown_others), len(others))} patients, by reason"
    return [
        Section(f"Counted: {_first_of(len(shown), len(courses))} patients, by diagnosis and course", _axis(axis), counted),
        Section(
            f"Not counted: {n_others}" + (f" ({few} more have too few reports or none of the diagnoses)" if few else ""),
            _axis(other_axis),
            rest,
        ),
    ]


def _axis(axis: Axis) -> Any:
    return Markup(axis_svg(axis))


def _other_rows(found: Timeline, patient: Patient, note: str, axis: Axis, style: Style) -> Iterable[StripRow]:
    """One row for each diagnosis that is followed; one without name where there is none."""
    for place, subject in enumerate(patient.subjects or [""]):
        label = found.task.label(subject) if subject else NO_FIGURE
        undated = sum(visit.when is None for visit in patient.visits)
        extra = f" ({undated} without date are not drawn)" if undated else ""
        yield StripRow(
            patient.patient_id if place == 0 else "",
            label,
            Markup(strip(patient, subject, axis, style)),
            note + extra if place == 0 else "",
        )


def _first_of(n_shown: int, n: int) -> str:
    return str(n) if n_shown == n else f"the first {n_shown} of {n}"


def _legend(style: Style) -> list[tuple[str, str]]:
    subject = "x"
    values = list(style.labels)
    kinds: list[tuple[Visit, str]] = [(Visit("", None, {subject: (value,)}), style.labels[value]) for value in values]
    if len(values) > 1:
        kinds.append((Visit("", None, {subject: (values[0], values[-1])}), "several episodes in one report"))
    kinds += [
        (Visit("", None, {subject: ()}), "no episode stated"),
        (Visit("", None, {}), "diagnosis not stated"),
        (Visit("", None, None), "unknown: failed or rejected"),
    ]
    frame = f'<svg width="{CELL_WIDTH}" height="{CELL_HEIGHT}" {FONT}>'
    return [(f"{frame}{_untitled(cell(visit, subject, style, left=0, top=0))}</svg>", text) for visit, text in kinds]


def _untitled(shape: str) -> str:
    return shape[: shape.index("<title>")] + shape[shape.index("</title>") + len("</title>") :]


def _interval_row(found: Timeline, name: str, days: Days) -> tuple[str, int, str, str]:
    label = "all" if name == ALL else found.task.label(name)
    if days.n == 0:
        return label, 0, NO_FIGURE, NO_FIGURE
    return label, days.n, f"{days.median:.0f}", f"{days.q1:.0f}–{days.q3:.0f}"


def _day_cells(days: Days) -> tuple[object, object, object]:
    return ("", "", "") if days.n == 0 else (days.median, days.q1, days.q3)


def _null(figure: float) -> float | None:
    return None if math.isnan(figure) else figure


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


__all__ = ["as_object", "lead", "page", "tables", "warnings", "write_timeline"]

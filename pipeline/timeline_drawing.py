"""Timelines as SVG, drawn here without a plotting library: a Sankey of all courses, and one strip of cells a patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from configs.schema import Task
from pipeline.timeline import Patient, Timeline, Visit

# Okabe and Ito's palette, apart for colour-blind readers too; cells carry a letter besides.
PALETTE = ("#D55E00", "#5B7C99", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7B4EA3", "#4D4D4D", "#A6761D")
INK, FAINT, PAPER = "#1d2733", "#8a949e", "#ffffff"
FONT = "font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\""

SANKEY_WIDTH, SANKEY_HEIGHT = 1060, 430
SANKEY_TOP, SANKEY_LEFT, SANKEY_RIGHT = 64, 14, 128
NODE_WIDTH, NODE_GAP, MIN_NODE = 16, 22, 3.0
LABEL_EVERY = 15.0

STRIP_WIDTH, STRIP_HEIGHT, CELL_WIDTH, CELL_HEIGHT = 700, 34, 15, 18
STRIP_EDGE = 10
DAYS_A_YEAR = 365.25
MAX_TICKS = 12

Node = tuple[int, str]
Link = tuple[Node, Node]


@dataclass(frozen=True, slots=True)
class Style:
    """Colour and letter of every value of a task's course."""

    colours: dict[str, str]
    letters: dict[str, str]
    labels: dict[str, str]

    @classmethod
    def of(cls, task: Task, values: Sequence[str]) -> Style:
        """Letters are first letters, or numbers where those are not apart."""
        labels = {value: task.label(value) for value in values}
        first = [label[:1].upper() for label in labels.values()]
        letters = first if len(set(first)) == len(first) else [str(n) for n in range(1, len(first) + 1)]
        colours = {value: PALETTE[place % len(PALETTE)] for place, value in enumerate(values)}
        return cls(colours, dict(zip(values, letters, strict=True)), labels)


@dataclass(frozen=True, slots=True)
class Box:
    """Where a node stands; `top` and `height` in pixels."""

    left: float
    top: float
    height: float
    n: int


def sankey(found: Timeline, style: Style) -> str:
    """Diagnosis, first episode, and the episode after each change; the width of a band is its number of patients."""
    paths = [(course.subject, *course.path) for course in found.courses]
    about = f"Courses of {len(paths)} patients"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SANKEY_WIDTH} {SANKEY_HEIGHT}" width="{SANKEY_WIDTH}" '
        f'height="{SANKEY_HEIGHT}" role="img" aria-label="{about}" {FONT}><title>{about}</title>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    )
    if not paths:
        return f'{head}<text x="40" y="80" font-size="16" fill="{INK}">No patient is left after the filters.</text></svg>\n'
    order = [*found.subjects, *found.step.values]
    nodes = Counter((column, name) for path in paths for column, name in enumerate(path))
    links = Counter(((column, path[column]), (column + 1, path[column + 1])) for path in paths for column in range(len(path) - 1))
    boxes = _boxes(nodes, order)
    names = {subject: found.task.label(subject) for subject in found.subjects} | style.labels
    parts = [head, *_headings(boxes, nodes), *_bands(boxes, links, order, style, names), *_nodes(boxes, style, names), "</svg>\n"]
    return "".join(parts)


def _boxes(nodes: Counter[Node], order: Sequence[str]) -> dict[Node, Box]:
    """Every column is centred; one patient is equally high everywhere."""
    columns = sorted({column for column, _ in nodes})
    inside = {column: sorted((name for c, name in nodes if c == column), key=order.index) for column in columns}
    space = SANKEY_HEIGHT - SANKEY_TOP - 16
    most = max(sum(nodes[column, name] for name in inside[column]) for column in columns)
    gaps = max(len(names) - 1 for names in inside.values()) * NODE_GAP
    one = (space - gaps) / most
    step = (SANKEY_WIDTH - SANKEY_LEFT - SANKEY_RIGHT - NODE_WIDTH) / max(len(columns) - 1, 1)
    boxes = {}
    for column in columns:
        heights = {name: max(one * nodes[column, name], MIN_NODE) for name in inside[column]}
        total = sum(heights.values()) + NODE_GAP * (len(heights) - 1)
        top = SANKEY_TOP + (space - total) / 2
        for name, height in heights.items():
            boxes[column, name] = Box(SANKEY_LEFT + column * step, top, height, nodes[column, name])
            top += height + NODE_GAP
    return boxes


def _headings(boxes: dict[Node, Box], nodes: Counter[Node]) -> Iterable[str]:
    for column in sorted({column for column, _ in nodes}):
        left = next(box.left for (c, _), box in boxes.items() if c == column)
        n = sum(count for (c, _), count in nodes.items() if c == column)
        title = ("diagnosis", "first episode")[column] if column < 2 else f"after change {column - 1}"
        yield f'<text x="{left:.1f}" y="24" font-size="14" font-weight="600" fill="{INK}">{title}</text>'
        yield f'<text x="{left:.1f}" y="42" font-size="12" fill="{FAINT}">{n} patient{"" if n == 1 else "s"}</text>'


def _bands(
    boxes: dict[Node, Box], links: Counter[Link], order: Sequence[str], style: Style, names: dict[str, str]
) -> Iterable[str]:
    leaving: dict[Node, float] = {}
    arriving: dict[Node, float] = {}
    ends: dict[Link, tuple[float, float, float]] = {}
    for link in sorted(links, key=lambda k: (k[0][0], order.index(k[0][1]), order.index(k[1][1]))):
        source, _ = link
        width = boxes[source].height * links[link] / boxes[source].n
        ends[link] = (boxes[source].top + leaving.get(source, 0.0), 0.0, width)
        leaving[source] = leaving.get(source, 0.0) + width
    for link in sorted(links, key=lambda k: (k[0][0], order.index(k[1][1]), order.index(k[0][1]))):
        _, target = link
        top, _, width = ends[link]
        ends[link] = (top, boxes[target].top + arriving.get(target, 0.0), width)
        arriving[target] = arriving.get(target, 0.0) + boxes[target].height * links[link] / boxes[target].n
    for (source, target), (y0, y1, width) in ends.items():
        x0, x1 = boxes[source].left + NODE_WIDTH, boxes[target].left
        middle = (x0 + x1) / 2
        width_1 = boxes[target].height * links[source, target] / boxes[target].n
        n = links[source, target]
        title = f"{names[source[1]]} → {names[target[1]]}: {n} patient{'' if n == 1 else 's'}"
        y2, y3 = y0 + width, y1 + width_1
        yield (
            f'<path d="M{x0:.1f},{y0:.1f} C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f} '
            f"L{x1:.1f},{y3:.1f} C{middle:.1f},{y3:.1f} {middle:.1f},{y2:.1f} {x0:.1f},{y2:.1f} Z"
            f'" fill="{style.colours[target[1]]}" fill-opacity="0.38"><title>{escape(title)}</title></path>'
        )


def _nodes(boxes: dict[Node, Box], style: Style, names: dict[str, str]) -> Iterable[str]:
    for (_, name), box in boxes.items():
        colour = style.colours.get(name, INK)
        label = escape(f"{names[name]} {box.n}")
        yield (
            f'<rect x="{box.left:.1f}" y="{box.top:.1f}" width="{NODE_WIDTH}" height="{box.height:.1f}" rx="2" fill="{colour}">'
            f"<title>{label}</title></rect>"
            f'<text x="{box.left + NODE_WIDTH + 7:.1f}" y="{box.top + box.height / 2 + 4.5:.1f}" font-size="13" fill="{INK}" '
            f'stroke="{PAPER}" stroke-width="3.5" paint-order="stroke" stroke-linejoin="round">{label}</text>'
        )


@dataclass(frozen=True, slots=True)
class Axis:
    """The common time axis of all strips: days since a patient's first report."""

    n_days: int

    def x(self, days: float) -> float:
        """Pixels from the left."""
        return STRIP_EDGE + (STRIP_WIDTH - 2 * STRIP_EDGE - CELL_WIDTH) * days / max(self.n_days, 1)

    def marks(self) -> list[tuple[float, str]]:
        """Pixels and their text, in whole months or years; a mark is at the middle of a cell of that day."""
        months = self.n_days / DAYS_A_YEAR * 12
        every = next((step for step in (1, 2, 3, 6, 12, 24, 60, 120) if months / step <= MAX_TICKS), 240)
        return [
            (self.x(month * DAYS_A_YEAR / 12) + CELL_WIDTH / 2, f"{month // 12} y" if every % 12 == 0 else f"{month} mo")
            for month in range(0, int(months) + 1, every)
        ]


def axis_of(patients: Iterable[Patient]) -> Axis:
    """An axis on which every patient fits."""
    spans = [_day(dates[-1]) - _day(dates[0]) for p in patients if (dates := [v.when for v in p.visits if v.when is not None])]
    return Axis(max(spans, default=1) or 1)


def axis_svg(axis: Axis) -> str:
    """The heading of the strips' column."""
    marks = "".join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="24" stroke="{FAINT}"/>'
        f'<text x="{x:.1f}" y="13" font-size="11" text-anchor="middle" fill="{INK}">{text}</text>'
        for x, text in axis.marks()
    )
    return f'<svg width="{STRIP_WIDTH}" height="24" viewBox="0 0 {STRIP_WIDTH} 24" {FONT}>{marks}</svg>'


def strip(patient: Patient, subject: str, axis: Axis, style: Style) -> str:
    """A cell a report at its date. Cells that would cover each other move right; the tick below stays at the date."""
    dated = [visit for visit in patient.visits if visit.when is not None]
    rows = [
        f'<svg width="{STRIP_WIDTH}" height="{STRIP_HEIGHT}" viewBox="0 0 {STRIP_WIDTH} {STRIP_HEIGHT}" {FONT}>',
        *(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{STRIP_HEIGHT}" stroke="#e8ecef"/>' for x, _ in axis.marks()),
    ]
    if dated:
        start = _day(dated[0].when)
        places = _without_overlap([axis.x(_day(visit.when) - start) for visit in dated])
        middle = 3 + CELL_HEIGHT / 2
        rows.append(
            f'<line x1="{places[0] + 2:.1f}" x2="{places[-1] + CELL_WIDTH - 2:.1f}" y1="{middle}" y2="{middle}" '
            f'stroke="{FAINT}" stroke-width="1.5"/>'
        )
        for visit, place in zip(dated, places, strict=True):
            true = axis.x(_day(visit.when) - start) + CELL_WIDTH / 2
            rows.append(
                f'<line x1="{true:.1f}" x2="{true:.1f}" y1="{CELL_HEIGHT + 6}" y2="{STRIP_HEIGHT - 3}" stroke="{INK}"/>'
                + cell(visit, subject, style, left=place, top=3)
            )
    return "".join(rows) + "</svg>"


def _without_overlap(places: Sequence[float]) -> list[float]:
    """Moved right where they would overlap, and back to the left where the last ones would leave the strip.

    More cells than fit side by side overlap evenly: every one can still be pointed at.
    """
    room = STRIP_WIDTH - CELL_WIDTH
    pitch = min(CELL_WIDTH + 1.0, room / max(len(places) - 1, 1))
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + pitch) if moved else place)
    limit = float(room)
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = max(min(moved[index], limit), 0.0)
        limit = moved[index] - pitch
    return moved


def cell(visit: Visit, subject: str, style: Style, *, left: float, top: float) -> str:
    """What one report states of the subject; an unread report is a dashed question mark, never a state."""
    when = "no date" if visit.when is None else f"{visit.when:%Y-%m-%d}"
    text, shape = _cell_shape(visit, subject, style, left=left, top=top)
    return f"<g><title>{escape(f'{when} · {visit.report_id} · {text}')}</title>{shape}</g>"


def _cell_shape(visit: Visit, subject: str, style: Style, *, left: float, top: float) -> tuple[str, str]:
    if visit.states is None:
        return "unknown (failed or rejected)", _frame(left, top, "#C0392B", "?", dash="3 2")
    if subject not in visit.states:
        return "diagnosis not stated", _frame(left, top, FAINT, "·", dash="1 2")
    values = visit.states[subject]
    if not values:
        return "no episode stated", _frame(left, top, FAINT, "")
    text = " and ".join(style.labels[value] for value in values)
    share = CELL_WIDTH / len(values)
    shape = "".join(
        f'<rect x="{left + place * share:.1f}" y="{top}" width="{share:.1f}" height="{CELL_HEIGHT}" fill="{style.colours[value]}"/>'
        for place, value in enumerate(values)
    )
    if len(values) == 1:
        shape += _letter(left, top, style.letters[values[0]], PAPER)
    return text, shape


def _frame(left: float, top: float, colour: str, letter: str, *, dash: str = "none") -> str:
    return (
        f'<rect x="{left + 0.75:.1f}" y="{top + 0.75}" width="{CELL_WIDTH - 1.5}" height="{CELL_HEIGHT - 1.5}" fill="{PAPER}" '
        f'stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>{_letter(left, top, letter, colour)}'
    )


def _letter(left: float, top: float, letter: str, colour: str) -> str:
    return (
        f'<text x="{left + CELL_WIDTH / 2:.1f}" y="{top + CELL_HEIGHT / 2 + 4}" font-size="11" font-weight="600" '
        f'text-anchor="middle" fill="{colour}" pointer-events="none">{escape(letter)}</text>'
    )


def _day(when: datetime | None) -> int:
    if when is None:
        raise ValueError("a visit without a date has no place on the axis")
    return when.toordinal()

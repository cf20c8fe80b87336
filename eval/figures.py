"""The figures of an evaluation, drawn with matplotlib: SVG and PNG files, and SVG for the report that follows its colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import KINDS, NONE
from eval.results import Results, SystemResult
from eval.score import HEADLINES
from pipeline.sinks import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, CELL_DARK, CELL_LIGHT = "#1b1f24", "#c9ced4", "#0f1317", "#ffffff"
# Distinct for colour-blind readers, and on white as on black.
COLOURS = ("#3b82c4", "#d98200", "#1f9d74", "#c2619b", "#7a6ad8", "#8a8f96", "#b5533c", "#5f9ea0")
KIND_COLOURS = dict(zip(KINDS, ("#3b82c4", "#d98200", "#c2619b", "#1f9d74", "#8a8f96"), strict=True))
BAR_FIGURES = ("keys_accuracy", "keys_f1", "keys_micro_f1", "pairs_exact", "pairs_macro_f1", "pairs_micro_f1")
PNG_DPI = 150
FIGURE_WIDTH_INCHES = 8.0
MAX_UPRIGHT_CHARS = 60  # of all column names together
DARK_CELL = 0.55  # from which share of the highest colour a cell's number is white


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure ready to be written; `caption` says how to read it."""

    name: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def drawings(results: Results) -> list[Drawing]:
    """Every figure that the results have something for."""
    found = [
        Drawing(
            "headline", "Main figures", "Bars: percent. Whiskers: 95 % bootstrap interval over patients.", lambda: _bars(results)
        ),
        Drawing(
            "keys", "F1 of each key", "Keys in the order of the task; whiskers as above. No dot: undefined.", lambda: _keys(results)
        ),
        Drawing(
            "errors",
            "Errors by kind",
            "Keys and values together; the list of errors explains the kinds.",
            lambda: _errors(results),
        ),
    ]
    if results.scope.subjects:
        for system in results.systems:
            if system.states_relations and system.score.per_pair:
                caption = (
                    "F1 of each subject and value in percent, with the number in gold. Empty: neither gold nor the system has it."
                )
                found.append(
                    Drawing(
                        f"heatmap_{_plain(system.name)}",
                        f"{system.name}: F1 by subject and value",
                        caption,
                        _later(_heatmap, results, system),
                    )
                )
    for group in results.task.groups:
        if any(group in system.confusions for system in results.systems):
            title = f"What was taken for what: {results.task.label(group)}"
            caption = "Rows: gold. Columns: predicted; 'none' where nothing of the group was said. Numbers are diagnoses."
            found.append(Drawing(f"confusion_{group}", title, caption, _later(_confusions, results, group)))
    if any(system.trust for system in results.systems):
        caption = "On the line: what is said with 80 % is right in 80 %. Dot size: number of decisions. Needs confidences."
        found.append(Drawing("reliability", "Reliability of confidences", caption, lambda: _reliability(results)))
        caption = "Reviewing the least sure first: share of all errors found. The dotted line is review in random order."
        found.append(Drawing("triage", "What a review of the least sure finds", caption, lambda: _triage(results)))
    return found


def write_figures(found: Sequence[Drawing], folder: Path) -> dict[str, str]:
    """NAME.svg and NAME.png of each; returns by name the SVG for inside a page, without size and with the page's colours.

    Raises:
        SinkError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inline = {}
    for drawing in found:
        with _style(drawing.name):
            figure = drawing.draw()
            svg, png = io.StringIO(), io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None}, facecolor="white")
            figure.savefig(png, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
            page = io.StringIO()
            figure.savefig(page, format="svg", metadata={"Date": None}, transparent=True)
        for suffix, content in ((".svg", svg.getvalue().encode()), (".png", png.getvalue())):
            with whole_file(folder / f"{drawing.name}{suffix}") as temporary:
                temporary.write_bytes(content)
        inline[drawing.name] = _for_page(page.getvalue(), drawing.name)
    return inline


def _for_page(svg: str, name: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(<svg [^>]*?)height="[^"]*" ([^>]*?)width="[^"]*"', r"\1\2\3", body, count=1
    )
    body = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{name}-\2", body)
    return body.replace(INK, "currentColor").replace(GRID, "var(--line)")


@contextmanager
def _style(name: str) -> Iterator[None]:
    import matplotlib as mpl

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {  # matplotlib wants a literal name for each
        **dict.fromkeys(ink, INK),
        "grid.color": GRID,
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def _figure(height_inches: float, *, columns: int = 1, width_inches: float = FIGURE_WIDTH_INCHES) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _later(draw: Callable[..., Figure], *arguments: object) -> Callable[[], Figure]:
    return lambda: draw(*arguments)


def _colour(results: Results, system: SystemResult) -> str:
    return COLOURS[results.names.index(system.name) % len(COLOURS)]


def _bars(results: Results) -> Figure:
    items = [item for item in HEADLINES if item.name in BAR_FIGURES and (results.scope.subjects or not item.pairs)]
    n = len(results.systems)
    figure, (axes,) = _figure(0.8 + len(items) * (0.25 + 0.17 * n))
    for index, system in enumerate(results.systems):
        for row, item in enumerate(items):
            value, interval = system.figures[item.name], system.shown_interval(item.name)
            place = row + (index - (n - 1) / 2) * 0.8 / n
            if math.isnan(value):
                axes.text(0.6, place, "–", va="center", fontsize=7, color=INK)
                continue
            axes.barh(place, 100 * value, height=0.72 / n, color=_colour(results, system), label=system.name if row == 0 else None)
            if not math.isnan(interval.low):
                axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=INK, linewidth=1)
    axes.set_yticks(range(len(items)), [f"{'pairs' if item.pairs else 'keys'}: {item.label}" for item in items])
    axes.invert_yaxis()
    _percent_axis(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=min(n, 5))
    return figure


def _keys(results: Results) -> Figure:
    n, keys = len(results.systems), results.scope.keys
    figure, (axes,) = _figure(0.8 + len(keys) * (0.16 + 0.08 * n))
    for index, system in enumerate(results.systems):
        for row, key in enumerate(keys):
            value, interval = system.score.per_key[key].f1, system.per_key_f1_interval[key]
            if math.isnan(value):
                continue
            place = row + (index - (n - 1) / 2) * 0.7 / n
            colour = _colour(results, system)
            if not math.isnan(interval.low):
                axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=colour, linewidth=1)
            axes.plot([100 * value], [place], "o", color=colour, markersize=4)
        axes.plot([], [], "o", color=_colour(results, system), label=system.name)
    axes.set_yticks(range(len(keys)), [results.task.label(key) for key in keys])
    axes.invert_yaxis()
    _percent_axis(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=min(n, 5))
    return figure


def _errors(results: Results) -> Figure:
    figure, (axes,) = _figure(0.9 + 0.35 * len(results.systems))
    left = [0] * len(results.systems)
    for kind in KINDS:
        counts = [sum(error.kind == kind for error in system.errors) for system in results.systems]
        if any(counts):
            bars = axes.barh(range(len(left)), counts, left=left, height=0.6, color=KIND_COLOURS[kind], label=kind)
            axes.bar_label(
                bars, [str(count) if count else "" for count in counts], label_type="center", fontsize=8, color=CELL_LIGHT
            )
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.set_yticks(range(len(left)), results.names)
    axes.invert_yaxis()
    axes.set_xlabel("errors")
    if any(left):
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(KINDS))
    return figure


def _heatmap(results: Results, system: SystemResult) -> Figure:
    subjects = results.scope.subjects
    seen = {name.partition(":")[2] for other in results.systems for name in other.score.per_pair}
    values = [value for value in results.task.values if value in seen]
    cells = [
        [
            (system.score.per_pair[name].f1, str(system.score.per_pair[name].n_gold))
            if name in system.score.per_pair
            else (math.nan, "")
            for value in values
            for name in [f"{subject}:{value}"]
        ]
        for subject in subjects
    ]
    figure, (axes,) = _figure(0.9 + 0.38 * len(subjects))
    shares = [[share for share, _ in row] for row in cells]
    texts = [["" if math.isnan(share) else f"{100 * share:.0f} ({n})" for share, n in row] for row in cells]
    labels = [results.task.label(value) for value in values]
    _cells(axes, shares, texts, rows=[results.task.label(subject) for subject in subjects], columns=labels)
    return figure


def _confusions(results: Results, group: str) -> Figure:
    shown = [system for system in results.systems if group in system.confusions]
    names = (*shown[0].confusions[group].names, NONE)
    labels = [name if name == NONE else results.task.label(name) for name in names]
    figure, grid = _figure(3.6 if len(shown) < 3 else 3.0, columns=len(shown))
    for index, (axes, system) in enumerate(zip(grid, shown, strict=True)):
        counts = system.confusions[group].counts
        totals = {row: sum(counts[row].values()) for row in names}
        shares = [[counts[row][column] / totals[row] if totals[row] else math.nan for column in names] for row in names]
        texts = [[str(counts[row][column]) if counts[row][column] else "" for column in names] for row in names]
        _cells(axes, shares, texts, rows=labels if index == 0 else [""] * len(names), columns=labels)
        axes.set_title(system.name)
    grid[0].set_ylabel("gold")
    return figure


def _cells(
    axes: Axes, shares: Sequence[Sequence[float]], texts: Sequence[Sequence[str]], *, rows: Sequence[str], columns: Sequence[str]
) -> None:
    import numpy as np

    mesh = axes.pcolormesh(
        np.ma.masked_invalid(np.array(shares, dtype=float)), cmap="Blues", vmin=0, vmax=1, edgecolors=GRID, linewidth=0.5
    )
    mesh.set_rasterized(False)
    for y, row in enumerate(texts):
        for x, text in enumerate(row):
            colour = CELL_LIGHT if shares[y][x] > DARK_CELL else CELL_DARK
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7, color=colour)
    turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if len(columns) * max(map(len, columns)) > MAX_UPRIGHT_CHARS else {}
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, **turned)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)


def _reliability(results: Results) -> Figure:
    kinds = [kind for kind in ("entities", "relations") if any(kind in system.trust for system in results.systems)]
    figure, grid = _figure(3.6, columns=max(len(kinds), 1), width_inches=FIGURE_WIDTH_INCHES if len(kinds) > 1 else 4.5)
    for axes, kind in zip(grid, kinds, strict=False):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=1)
        for system in results.systems:
            if kind in system.trust:
                found = system.trust[kind].reliability
                bins = [b for b in found.bins if b.n]
                x, y = [100 * b.mean_probability for b in bins], [100 * b.share_there for b in bins]
                axes.plot(x, y, "-", color=_colour(results, system), linewidth=1)
                axes.scatter(
                    x,
                    y,
                    s=[8 + 60 * b.n / found.n for b in bins],
                    color=_colour(results, system),
                    label=f"{system.name} (ECE {100 * found.ece:.1f}, n={found.n})",
                )
        axes.set(title=kind, xlabel="stated probability, %", ylabel="right in %", xlim=(-2, 102), ylim=(-2, 102))
        axes.legend(loc="upper left", fontsize=8)
    return figure


def _triage(results: Results) -> Figure:
    kinds = [kind for kind in ("entities", "relations", "reports") if any(kind in s.trust for s in results.systems)]
    figure, grid = _figure(3.2, columns=len(kinds))
    for axes, kind in zip(grid, kinds, strict=True):
        axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=1)
        axes.axvline(20, color=GRID, linewidth=1)
        for system in results.systems:
            if kind in system.trust and system.trust[kind].triage.n_wrong:
                curve = system.trust[kind].triage.curve
                axes.plot(
                    [100 * x for x, _ in curve], [100 * y for _, y in curve], color=_colour(results, system), label=system.name
                )
        axes.set(title=kind, xlabel="reviewed, %, least sure first", ylabel="errors found, %", xlim=(0, 100), ylim=(0, 102))
        axes.legend(loc="lower right", fontsize=8)
    return figure


def _percent_axis(axes: Axes) -> None:
    axes.set_xlim(0, 101)
    axes.set_xlabel("%")
    axes.grid(axis="x", linewidth=0.6)
    axes.set_axisbelow(True)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)

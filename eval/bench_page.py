"""docs/PERFORMANCE.md and its picture, written from the figures of bench/results.json and nothing else."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.figures import COLOURS, GRID, INK
from pipeline.sinks import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "performance.svg"
TEMPLATE = Path(__file__).resolve().parent / "performance.md.j2"
SYSTEM_COLUMNS = (
    "system",
    "processor s a report",
    "lowest – highest run",
    "wall s a report",
    "pair F1 macro / micro",
    "keys micro F1",
    "n scored",
    "failed",
    "note",
)
Cells = Sequence[Sequence[str]]


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """The page and, beside it, the picture. Raises SinkError when the disk refuses."""
    page.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((page.with_name(PICTURE), picture(results)), (page, markdown(results))):
        with whole_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")


def markdown(results: Mapping[str, Any]) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    page = environment.get_template(TEMPLATE.name).render(
        **dict(results) | {"tasks": [_task_tables(task, found) for task, found in results["tasks"].items()]},
        picture=PICTURE,
        goals_table=_table(["goal", "wanted", "found", "met"], _goal_rows(results["goals"])),
        archives_table=_archives_table(results["archives"]["runs"]),
        cost_table=_cost_table(results["cost"]["archives"]),
    )
    return page.rstrip("\n") + "\n"


def _task_tables(task: str, found: Mapping[str, Any]) -> dict[str, Any]:
    tricks = [
        [row["trick"], row["off"], f"{row['off_cpu_s']:.3f}", row["on"], f"{row['on_cpu_s']:.3f}", _number(row["times_as_fast"])]
        for row in found["stage2"]["tricks"]
    ]
    return {
        **found,
        "name": task,
        "systems_table": _table(SYSTEM_COLUMNS, [_system_row(row) for row in found["systems"]]),
        "ratios_table": _table(["ratio", "found"], [[name, _number(value)] for name, value in found["ratios"].items()]),
        "tricks_table": _table(["trick", "without it", "s", "with it", "s", "times as fast"], tricks),
    }


def _system_row(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        f"{row['cpu_s_a_report']:.4f}",
        f"{row['cpu_s_a_report_lowest']:.4f} – {row['cpu_s_a_report_highest']:.4f}",
        f"{row['wall_s_a_report']:.4f}",
        f"{_percent(row['pair_macro_f1'])} / {_percent(row['pair_micro_f1'])}",
        _percent(row["key_micro_f1"]),
        str(row["n_scored"] or "–"),
        str(row["n_failed"]) if row["n_scored"] else "–",
        row["note"],
    ]


def _goal_rows(goals: Sequence[Mapping[str, Any]]) -> Cells:
    met = {True: "yes", False: "**no**", None: "not measured"}
    return [[row["goal"], f"{row['sign']} {row['wanted']:g}", _number(row["found"]), met[row["met"]]] for row in goals]


def _archives_table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            run["system"],
            f"{run['n_reports']:,}",
            str(run["workers"]),
            f"{run['wall_s']:.1f}",
            f"{run['tag_s']:.1f}",
            _number(run["n_reports"] / run["tag_s"]),
            f"{run['cpu_s']:.1f}",
            f"{run['peak_memory_mib']:.0f}",
        ]
        for run in runs
    ]
    header = ["system", "reports", "workers", "wall s", "of it tagging", "reports/s", "processor s", "peak memory, MiB"]
    return _table(header, rows)


def _cost_table(costs: Sequence[Mapping[str, Any]]) -> str:
    cores = list(costs[0]["days"])
    rows = []
    for n_reports in dict.fromkeys(cost["n_reports"] for cost in costs):
        for cost in costs:
            if cost["n_reports"] == n_reports:
                days = [_number(cost["days"][n]) for n in cores]
                rows.append([f"{n_reports:,}", cost["system"], _number(cost["core_hours"]), *days])
        rows.append([f"{n_reports:,}", "any, on one GPU", "not measured", *("–" for _ in cores)])
    return _table(["reports", "system", "core hours", *(f"days on {n} cores" for n in cores)], rows)


def picture(results: Mapping[str, Any]) -> str:
    """SVG: systems on a logarithmic scale with the floor, tricks off and on, archives by size."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ink: dict[Any, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    fixed: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "performance",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "legend.frameon": False,
        "axes.titlesize": 10,
    }
    with mpl.rc_context({**ink, **fixed}):
        n_tasks = len(results["tasks"])
        figure = Figure(figsize=(9.5, 3.1 * n_tasks + 2.9), layout="constrained")
        grid = figure.subplots(n_tasks + 1, 2, squeeze=False)
        for row, (task, found) in zip(grid, results["tasks"].items(), strict=False):
            _draw_systems(row[0], task, found)
            _draw_tricks(row[1], task, found["stage2"]["tricks"])
        for axes, of, label in zip(grid[-1], ("tag_s", "peak_memory_mib"), ("seconds of tagging", "peak memory, MiB"), strict=True):
            _draw_archives(axes, results["archives"]["runs"], of, label)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="white")
    return stream.getvalue()


def _draw_systems(axes: Axes, task: str, found: Mapping[str, Any]) -> None:
    rows = found["systems"]
    for place, row in enumerate(rows):
        axes.barh(place, row["cpu_s_a_report"], height=0.7, color=COLOURS[place % len(COLOURS)])
        axes.text(row["cpu_s_a_report"], place, f" {row['cpu_s_a_report']:.3g} s", va="center", fontsize=8)
    floor = next(way["cpu_s_a_report"] for way in found["stage2"]["ways"] if way["name"] == "floor")
    axes.axvline(floor, color=INK, linewidth=1, linestyle=":", label=f"floor {floor:.3g} s")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set(xscale="log", xlabel="processor seconds a report", title=f"{task}: systems")
    axes.margins(x=0.25)
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize=8)


def _draw_tricks(axes: Axes, task: str, tricks: Sequence[Mapping[str, Any]]) -> None:
    for place, row in enumerate(tricks):
        axes.plot([row["off_cpu_s"], row["on_cpu_s"]], [place, place], color=GRID, linewidth=3, zorder=1)
        axes.scatter([row["off_cpu_s"]], [place], color=COLOURS[1], s=22, label="without" if place == 0 else None, zorder=2)
        axes.scatter([row["on_cpu_s"]], [place], color=COLOURS[2], s=22, label="with" if place == 0 else None, zorder=2)
    axes.set_yticks(range(len(tricks)), [row["trick"].partition(" (")[0] for row in tricks])
    axes.set(xscale="log", xlabel="processor seconds a report", title=f"{task}: stage 2, trick by trick")
    axes.invert_yaxis()
    axes.legend(loc="lower left", fontsize=8)


def _draw_archives(axes: Axes, runs: Sequence[Mapping[str, Any]], of: str, label: str) -> None:
    series = list(dict.fromkeys((run["system"], run["workers"]) for run in runs))
    for index, (system, workers) in enumerate(series):
        points = sorted((run["n_reports"], run[of]) for run in runs if (run["system"], run["workers"]) == (system, workers))
        name = f"{system}, {workers} worker{'s' if workers > 1 else ''}"
        axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[index % len(COLOURS)], markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="reports", title=label)
    axes.legend(loc="best", fontsize=7)


def _table(header: Sequence[str], rows: Cells) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

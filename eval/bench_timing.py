"""Ways to read reports, timed side by side: wall and processor seconds, medians and ratios over repeated, interleaved runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from configs.contracts import Report

Read = Callable[[Sequence[Report]], Any]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read reports.

    Attributes:
        reports: The reports this way is timed on; None means those of all ways.
        other_cpu_s: Processor seconds so far of processes beside this one that work for it (a server).
    """

    name: str
    read: Read
    reports: Sequence[Report] | None = None
    other_cpu_s: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a report of each run. Processor seconds are not stretched by other work on the machine; wall seconds are.

    `answers` are those of the last run.
    """

    name: str
    n_reports: int
    wall_s_runs: tuple[float, ...]
    cpu_s_runs: tuple[float, ...]
    answers: Any = field(default=None, compare=False, repr=False)

    @property
    def wall_s(self) -> float:
        """Median wall seconds a report."""
        return median(self.wall_s_runs)

    @property
    def cpu_s(self) -> float:
        """Median processor seconds a report."""
        return median(self.cpu_s_runs)

    def as_object(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "name": self.name,
            "n_reports": self.n_reports,
            "n_runs": len(self.cpu_s_runs),
            "wall_s_a_report": round(self.wall_s, 5),
            "cpu_s_a_report": round(self.cpu_s, 5),
            "cpu_s_a_report_lowest": round(min(self.cpu_s_runs), 5),
            "cpu_s_a_report_highest": round(max(self.cpu_s_runs), 5),
        }


def time_ways(
    ways: Sequence[Way], reports: Sequence[Report], *, n_runs: int, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Timing]:
    """Each way reads one report to warm up, then run after run every way reads all: what slows the machine slows all alike.

    Raises:
        ValueError: no report, or two ways of one name.
    """
    names = [way.name for way in ways]
    if len(set(names)) != len(names) or not reports or n_runs < 1:
        raise ValueError(f"{len(names)} ways with {len(set(names))} names, {len(reports)} reports, {n_runs} runs")
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    answers: dict[str, Any] = {}
    for way in ways:
        way.read(_its_reports(way, reports)[:1])
    for run in range(n_runs):
        for way in ways:
            its = _its_reports(way, reports)
            begin_s, begin_cpu_s = time.perf_counter(), _cpu_s(way)
            answers[way.name] = way.read(its)
            spent = ((time.perf_counter() - begin_s) / len(its), (_cpu_s(way) - begin_cpu_s) / len(its))
            seconds[way.name].append(spent)
            tell(f"run {run + 1} of {n_runs}: {way.name}: {spent[1]:.3f} processor seconds a report")
    return {
        way.name: Timing(
            way.name,
            len(_its_reports(way, reports)),
            tuple(wall for wall, _ in seconds[way.name]),
            tuple(cpu for _, cpu in seconds[way.name]),
            answers[way.name],
        )
        for way in ways
    }


def times_as_fast(timings: Mapping[str, Timing], fast: str, slow: str) -> float:
    """How many times less processor time `fast` takes than `slow`: the median of the ratios of each run."""
    pairs = zip(timings[slow].cpu_s_runs, timings[fast].cpu_s_runs, strict=True)
    return median(slow_s / fast_s for slow_s, fast_s in pairs)


def _its_reports(way: Way, reports: Sequence[Report]) -> Sequence[Report]:
    return reports if way.reports is None else way.reports


def _cpu_s(way: Way) -> float:
    return time.process_time() + (0.0 if way.other_cpu_s is None else way.other_cpu_s())

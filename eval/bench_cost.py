"""What an archive costs, from measured processor seconds a report: core hours and days, with the assumptions that they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

ARCHIVE_REPORTS = (10**6, 10**8)
CORES = (16, 256)
SECONDS_AN_HOUR, HOURS_A_DAY = 3600, 24


@dataclass(frozen=True, slots=True)
class ArchiveCost:
    """`days[n]`: wall time on n such cores. None where nothing was measured."""

    system: str
    n_reports: int
    core_hours: float | None
    days: Mapping[int, float | None]

    def as_object(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self) | {"days": {str(cores): days for cores, days in self.days.items()}}


def archive_costs(cpu_s_a_report: Mapping[str, float | None], *, speed_up: float | None) -> list[ArchiveCost]:
    """Costs of each system at every size.

    Args:
        cpu_s_a_report: Measured with one worker; None means not measured.
        speed_up: Rate of two workers over that of one; more workers are taken to lose the same share. None: not measured, no loss.
    """
    kept = 1.0 if speed_up is None else min(1.0, speed_up / 2)
    costs = []
    for n_reports in ARCHIVE_REPORTS:
        for system, cpu_s in cpu_s_a_report.items():
            hours = None if cpu_s is None else n_reports * cpu_s / SECONDS_AN_HOUR
            days = {cores: None if hours is None else hours / (cores * kept * HOURS_A_DAY) for cores in CORES}
            costs.append(ArchiveCost(system, n_reports, hours, days))
    return costs


def assumptions(*, speed_up: float | None, n_tokens: float) -> list[str]:
    """What the figures rest on, one sentence each. `n_tokens`: mean length of the measured reports."""
    loss = (
        "Workers do not slow each other down (two were not measured against one)."
        if speed_up is None
        else f"Two workers were measured at {speed_up:.2f} times the rate of one; any number of workers loses the same share."
    )
    return [
        "Every core is like the measured one; processor seconds of one thread, not wall seconds, are multiplied.",
        f"Reports are like the measured ones: {n_tokens:.0f} tokens of the language model on average, as many of them with a hint.",
        "No text stands twice. Repeated texts are read once, so a share of r repeats leaves 1 - r of the hours.",
        loss,
        "Loading the stages (seconds a worker) and reading the input cost nothing beside tagging.",
        "Nothing was measured on a GPU, so no figure is given: run `radtag tag --gpu-layers -1 --limit 1000` there and multiply.",
    ]

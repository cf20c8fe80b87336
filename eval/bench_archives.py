"""Archives of growing size through `radtag tag`, each in a process of its own: time, processor time and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.contracts import Report
from configs.schema import Task
from pipeline.sinks import whole_file

ROOT = Path(__file__).resolve().parent.parent  # of the packages: `-m` finds them there


class ArchiveRunError(Exception):
    """`radtag tag` that did not end well: its exit status and last line."""


@dataclass(frozen=True, slots=True)
class ArchiveRun:
    """What is tagged: `n_reports` by `system` with `workers` processes of one thread each."""

    system: str
    n_reports: int
    workers: int = 1


@dataclass(frozen=True, slots=True)
class ArchiveFigures:
    """One archive, start to end, as the operating system counts it.

    Attributes:
        tag_s: Of `wall_s`, the part after input was checked and stages were loaded.
        cpu_s: Of all processes.
        peak_memory_mib: Of the largest process.
    """

    system: str
    n_reports: int
    workers: int
    wall_s: float
    tag_s: float
    cpu_s: float
    peak_memory_mib: float

    def as_object(self) -> dict[str, Any]:
        """For results.json."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def distinct_reports(reports: Sequence[Report], n_reports: int) -> Iterator[Report]:
    """The reports again and again with ids of their own; a number in a last line makes every text differ.

    Raises:
        ValueError: there is no report.
    """
    if not reports:
        raise ValueError("no report to make an archive of")
    for number in range(n_reports):
        report = reports[number % len(reports)]
        yield Report(f"{number:09d}", f"{report.text}\nRef {number:09d}.")


def run_archive(task: Task, reports: Sequence[Report], run: ArchiveRun, folder: Path) -> ArchiveFigures:
    """Writes the archive and its records under `folder`, which should be empty.

    Raises:
        ArchiveRunError: a report failed or was rejected, or the command could not do its work.
        SinkError: the disk refuses.
    """
    archive, out, taken = folder / "reports.jsonl", folder / "records", folder / "taken.json"
    with whole_file(archive) as temporary, temporary.open("w", encoding="utf-8") as file:
        for report in distinct_reports(reports, run.n_reports):
            file.write(json.dumps({"report_id": report.report_id, "text": report.text}, ensure_ascii=False) + "\n")
    options = ["--task", str(task.path), "--system", run.system, "--workers", str(run.workers), "--threads", "1", "--out", str(out)]
    tag = [sys.executable, "-m", "pipeline.cli", "tag", str(archive), *options]
    done = subprocess.run(
        [sys.executable, "-m", "eval.bench_child", str(taken), *tag],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise ArchiveRunError(f"radtag tag --system {run.system} ended with {done.returncode}: {last}")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return ArchiveFigures(
        run.system, run.n_reports, run.workers, tag_s=float(summary["step_seconds"]["tag"]), **json.loads(taken.read_text("utf-8"))
    )


def run_archives(
    task: Task,
    reports: Sequence[Report],
    runs: Sequence[ArchiveRun],
    folder: Path,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[ArchiveFigures]:
    """Each run in a folder of its own, one after the other."""
    found = []
    for run in runs:
        place = folder / f"{run.system}-{run.n_reports}-{run.workers}"
        place.mkdir(parents=True)
        found.append(run_archive(task, reports, run, place))
        tell(f"archive: {run.system}, {run.n_reports} reports, {run.workers} workers: {found[-1].wall_s:.1f} s")
    return found


def growth(found: Sequence[ArchiveFigures], system: str, *, small: int, large: int, of: str) -> float | None:
    """One figure (a field of ArchiveFigures) at `large` over that at `small`, one worker; None when one was not run."""
    values = {run.n_reports: float(getattr(run, of)) for run in found if run.system == system and run.workers == 1}
    return values[large] / values[small] if small in values and large in values else None


def speed_up(found: Sequence[ArchiveFigures], *, workers: int = 2) -> tuple[str, int, float] | None:
    """Rate with `workers` over that with one, of the largest archive that was run with both: system, reports, ratio."""
    several = {(run.system, run.n_reports): run for run in found if run.workers == workers}
    both = [
        (run, several[run.system, run.n_reports]) for run in found if run.workers == 1 and (run.system, run.n_reports) in several
    ]
    if not both:
        return None
    one, more = max(both, key=lambda pair: pair[0].cpu_s)
    return one.system, one.n_reports, one.tag_s / more.tag_s

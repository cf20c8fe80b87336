"""`make bench`: reports a second of every system on the sample archive, in this process, with one thread."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from configs.contracts import Report
from pipeline.run import build_pipeline
from pipeline.settings import SYSTEMS, settings, with_files
from pipeline.sinks import whole_file

SAMPLE_ARCHIVE = Path(__file__).resolve().parent.parent / "pipeline" / "sample_archive"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Medians over `n_runs` runs of `n_reports` reports. `cpu_s_a_report` is processor time, which other work does not stretch."""

    task: str
    system: str
    n_reports: int
    n_runs: int
    reports_per_s: float
    cpu_s_a_report: float


def sample_reports(task: str) -> list[Report]:
    """The invented reports of the sample archive."""
    lines = (SAMPLE_ARCHIVE / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Report(row["report_id"], row["text"]) for row in map(json.loads, lines)]


def measure(task: str, system: str, reports: list[Report], *, n_runs: int) -> Throughput:
    """Loads the system once, tags one report to warm it, then times `n_runs` runs over all reports."""
    pipeline = build_pipeline(with_files(settings(task=task, system=system, threads=1)), {})
    pipeline.tag(reports[:1])
    wall_s, cpu_s = [], []
    for _ in range(n_runs):
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        pipeline.tag(reports)
        wall_s.append(time.perf_counter() - begin_s)
        cpu_s.append(time.process_time() - begin_cpu_s)
    return Throughput(
        task=task,
        system=system,
        n_reports=len(reports),
        n_runs=n_runs,
        reports_per_s=round(len(reports) / median(wall_s), 2),
        cpu_s_a_report=round(median(cpu_s) / len(reports), 4),
    )


def measure_all(*, n_runs: int = 3) -> list[Throughput]:
    """Every system on both tasks of the sample archive."""
    return [
        measure(task, system, sample_reports(task), n_runs=n_runs)
        for task in ("chest_ct", "brain_mri")
        for system in reversed(SYSTEMS)
    ]


def write_results(rows: list[Throughput], path: Path) -> None:
    """One JSON list of the rows. Raises SinkError when the disk refuses; `path` is then as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")

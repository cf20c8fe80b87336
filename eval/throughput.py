"""`make bench`: stage 1, stage 2, whole systems and growing archives, measured in one run for one page."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.schema import Task, load_task
from eval.bench_archives import ArchiveFigures, ArchiveRun, growth, run_archives, speed_up
from eval.bench_cost import archive_costs, assumptions
from eval.bench_stage2 import FLOOR, Stage2Bench, Stage2Files, bench_stage2
from eval.bench_systems import (
    COMPARED,
    LANGEXTRACT,
    PROMPT_ALONE,
    PUBLISHED,
    RULES,
    TWO_STAGE,
    SystemsBench,
    bench_systems,
    dev_split,
    reports_of,
    spread,
)
from eval.bench_timing import times_as_fast
from eval.gold import GoldReport, read_gold_reports
from eval.stage1_speed import measure_stage1
from pipeline.annotations import read_annotations
from pipeline.settings import free_cores, radtag_version, settings, with_files
from pipeline.sinks import whole_file

FORMAT_VERSION = 1
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """How much is measured.

    Attributes:
        n_timed: Reports of the dev split, evenly spaced, that every system is timed on.
        n_runs: Repetitions; figures are medians.
        score_all: F1 on the whole dev split; else on the timed reports.
        n_stage1: Reports for stage 1, which is fast.
        archives: Runs of `radtag tag` on the first task.
    """

    name: str
    tasks: tuple[str, ...]
    n_timed: int
    n_runs: int
    score_all: bool
    n_stage1: int
    archives: tuple[ArchiveRun, ...]


QUICK = BenchPlan(
    "quick",
    ("chest_ct",),
    n_timed=4,
    n_runs=3,
    score_all=False,
    n_stage1=32,
    archives=(ArchiveRun(RULES, 10**3), ArchiveRun(RULES, 10**3, workers=2), ArchiveRun("encoder", 10**3)),
)
ARCHIVES = replace(
    QUICK,
    name="archives",
    archives=(
        *(ArchiveRun(RULES, n_reports) for n_reports in (10**3, 10**4, 10**5)),
        ArchiveRun(RULES, 10**4, workers=2),
        *(ArchiveRun("encoder", n_reports) for n_reports in (10**3, 10**4, 10**5)),
    ),
)
LONG = BenchPlan(
    "long",
    ("chest_ct", "brain_mri"),
    n_timed=16,
    n_runs=3,
    score_all=True,
    n_stage1=180,
    archives=(
        *ARCHIVES.archives,
        ArchiveRun("encoder", 10**4, workers=2),
        ArchiveRun(TWO_STAGE, 10**3),
        ArchiveRun(TWO_STAGE, 10**3, workers=2),
    ),
)
PLANS = {plan.name: plan for plan in (QUICK, ARCHIVES, LONG)}


def run_bench(plan: BenchPlan, *, tell: Tell) -> dict[str, Any]:
    """Everything of the plan, measured in this one run; the object of results.json.

    Raises:
        What loading stages and tagging raise, ArchiveRunError, ServerStartError.
    """
    begin_s, load = time.perf_counter(), os.getloadavg()
    tasks = {name: _bench_task(load_task(name), plan, tell) for name in plan.tasks}
    first = load_task(plan.tasks[0])
    with tempfile.TemporaryDirectory(prefix="radtag-bench-") as folder:
        reports = reports_of(read_gold_reports(dev_split(first), first))
        archives = run_archives(first, reports, plan.archives, Path(folder), tell=tell)
    return {
        "format_version": FORMAT_VERSION,
        "made": date.today().isoformat(),
        "radtag": radtag_version(),
        "plan": {name: value for name, value in asdict(plan).items() if name != "archives"},
        "machine": _machine(load),
        "seconds": round(time.perf_counter() - begin_s, 1),
        "tasks": {name: found for name, (found, _) in tasks.items()},
        "archives": {"task": first.name, "runs": [run.as_object() for run in archives]},
        "cost": _cost(tasks[first.name][0], archives),
        "goals": _goals({name: ratios for name, (_, ratios) in tasks.items()}, archives),
    }


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """As JSON. Raises SinkError when the disk refuses; `path` is then as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _bench_task(task: Task, plan: BenchPlan, tell: Tell) -> tuple[dict[str, Any], dict[str, float | None]]:
    gold = [report for report in read_gold_reports(dev_split(task), task) if report.text is not None]
    timed = spread(gold, plan.n_timed)
    tell(f"{task.name}: stage 1")
    stage1 = _stage1(task, gold, plan)
    tell(f"{task.name}: stage 2")
    stage2 = _stage2(task, timed, plan, tell)
    tell(f"{task.name}: whole systems")
    systems = bench_systems(task, timed, gold if plan.score_all else timed, n_runs=plan.n_runs, tell=tell)
    ratios = _ratios(systems, stage2)
    found = {
        "n_dev": len(gold),
        "stage1": stage1,
        "stage2": stage2.as_object(),
        "systems": [systems.figures[name].as_object() for name in COMPARED if name in systems.figures],
        "not_measured": dict(systems.missing),
        "ratios": {name: None if ratio is None else round(ratio, 3) for name, ratio in ratios.items()},
    }
    return found, ratios


def _stage1(task: Task, gold: Sequence[GoldReport], plan: BenchPlan) -> dict[str, Any]:
    filled = with_files(settings(task=str(task.path), system="encoder"))
    if filled.encoder is None:
        raise ValueError("encoder settings without weights: with_files fills them in")
    texts = [report.text for report in reports_of(spread(gold, plan.n_stage1))]
    annotated = read_annotations(dev_split(task), task) if plan.score_all else []
    speed = measure_stage1(task, filled.encoder, texts, annotated, n_runs=plan.n_runs)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(speed).items()}
    undefined = [name for name, value in rounded.items() if value != value]
    return rounded | dict.fromkeys(undefined) | {"speedup": round(speed.speedup, 2)}


def _stage2(task: Task, timed: Sequence[GoldReport], plan: BenchPlan, tell: Tell) -> Stage2Bench:
    from stage1_encoder.encoder import Encoder
    from stage2_relations.adapter_folder import default_adapter
    from stage2_relations.model_file import default_model, packaged_model

    filled = with_files(settings(task=str(task.path), system="encoder"))
    if filled.encoder is None:
        raise ValueError("encoder settings without weights: with_files fills them in")
    reports = reports_of(timed)
    flags = Encoder.load(filled.encoder, threads=1).flag([report.text for report in reports])
    files = Stage2Files(default_model(), packaged_model(), default_adapter(task.name))
    by_id = {report.report_id: flag for report, flag in zip(reports, flags, strict=True)}
    return bench_stage2(task, files, reports, by_id, n_runs=plan.n_runs, tell=tell)


def _ratios(systems: SystemsBench, stage2: Stage2Bench) -> dict[str, float | None]:
    def against(name: str) -> float | None:
        return times_as_fast(systems.timings, TWO_STAGE, name) if name in systems.timings else None

    return {
        "two-stage against the published way": against(PUBLISHED),
        "two-stage against the published way, prompt alone": against(PROMPT_ALONE),
        "two-stage against langextract": against(LANGEXTRACT),
        "published way over the floor": systems.timings[PUBLISHED].cpu_s / stage2.timings[FLOOR].cpu_s,
        "share of the floor, stage 2 on reports with a hint": stage2.floor_share,
        "share of the floor, whole pipeline on all timed reports": _pipeline_share(systems, stage2),
    }


def _pipeline_share(systems: SystemsBench, stage2: Stage2Bench) -> float:
    """Floor of the reports that the model has to read, spread over all reports, over two-stage's time for all of them."""
    floor = stage2.timings[FLOOR]
    n_reports = floor.n_reports + stage2.n_without_hint
    return floor.cpu_s * floor.n_reports / n_reports / systems.timings[TWO_STAGE].cpu_s


def _cost(found: Mapping[str, Any], archives: Sequence[ArchiveFigures]) -> dict[str, Any]:
    cpu_s: dict[str, float | None] = dict.fromkeys((TWO_STAGE, "encoder", RULES, PUBLISHED, LANGEXTRACT))
    cpu_s |= {row["name"]: row["cpu_s_a_report"] for row in found["systems"] if row["name"] in cpu_s}
    for run in sorted((run for run in archives if run.workers == 1), key=lambda run: run.n_reports):
        cpu_s[run.system] = run.cpu_s / run.n_reports
    workers = speed_up(archives)
    return {
        "cpu_s_a_report": {system: None if s is None else round(s, 5) for system, s in cpu_s.items()},
        "two_workers": None if workers is None else {"system": workers[0], "n_reports": workers[1], "rate": round(workers[2], 3)},
        "archives": [cost.as_object() for cost in archive_costs(cpu_s, speed_up=None if workers is None else workers[2])],
        "assumptions": assumptions(
            speed_up=None if workers is None else workers[2], n_tokens=found["stage2"]["mean_report_tokens"]
        ),
    }


def _goals(ratios: Mapping[str, Mapping[str, float | None]], archives: Sequence[ArchiveFigures]) -> list[dict[str, Any]]:
    rows: list[tuple[str, str, float, float | None]] = []
    for task, found in ratios.items():
        rows += [
            (
                f"{task}: two-stage against the published way, times as fast",
                "≥",
                20.0,
                found["two-stage against the published way"],
            ),
            (f"{task}: two-stage against langextract, times as fast", "≥", 10.0, found["two-stage against langextract"]),
            (f"{task}: stage 2, share of the prefill floor", "≥", 0.7, found["share of the floor, stage 2 on reports with a hint"]),
        ]
    for system in (RULES, "encoder"):
        memory = growth(archives, system, small=10**3, large=10**5, of="peak_memory_mib")
        rows.append((f"{system}: memory at 100,000 reports over that at 1,000", "≤", 1.2, memory))
    rows.append(
        (
            "encoder: time at 100,000 reports over that at 10,000",
            "≤",
            10.5,
            growth(archives, "encoder", small=10**4, large=10**5, of="tag_s"),
        )
    )
    return [
        {
            "goal": name,
            "sign": sign,
            "wanted": wanted,
            "found": None if value is None else round(value, 3),
            "met": None if value is None else (value >= wanted if sign == "≥" else value <= wanted),
        }
        for name, sign, wanted, value in rows
    ]


def _machine(load: tuple[float, float, float]) -> dict[str, Any]:
    """Load averages at beginning and end say how quiet the machine was; wall seconds are worth nothing on a busy one."""
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": free_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in ("llama-cpp-python", "onnxruntime", "torch", "transformers")},
        "load_average_begin": round(load[0], 2),
        "load_average_end": round(os.getloadavg()[0], 2),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []

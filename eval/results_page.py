"""`radtag eval results`: every system on the shipped corpus, to docs/results.json and, from that file alone, docs/RESULTS.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.schema import Task, load_task
from eval.gold import GoldError, GoldReport, read_gold_reports
from eval.page_figures import gold_counts, page_figures
from eval.results import Results, plain
from eval.results_markdown import results_markdown
from eval.run import evaluate, run_evaluation
from eval.significance import LEVEL, N_RESAMPLES, SEED
from eval.systems import SystemAnswers, parse_systems
from pipeline.settings import radtag_version
from pipeline.sinks import whole_file
from pipeline.tagging import Progress

FORMAT = 1
PROGRAM = "radtag eval results"
_NOT_ON_A_PAGE = ("errors", "confusions", "per_pair", "trust")  # `radtag eval run` writes them; trust is among the figures


@dataclass(frozen=True, slots=True)
class PageRequest:
    """What is measured: each task on each split of the corpus, and on all splits together.

    Attributes:
        corpus: Holds <task>/<split>.jsonl.
        records: Kept between runs, by fingerprint and texts; holds report text.
        systems: As `--systems` takes them.
    """

    corpus: Path
    records: Path
    tasks: tuple[str, ...]
    splits: tuple[str, ...]
    systems: str
    n_resamples: int = N_RESAMPLES
    seed: int = SEED
    threads: int = 1
    workers: int = 1
    gpu_layers: int = 0


def measure(request: PageRequest, *, progress: Callable[[str], Progress] | None = None) -> dict[str, Any]:
    """The object of results.json. Every report is tagged once by every system: the splits together reuse their records.

    Raises:
        GoldError: a split is missing or cannot be read, or an id stands in two splits; and what `run_evaluation` raises.
    """
    tasks = {task.name: _task_object(task, request, progress) for task in map(load_task, request.tasks)}
    systems = next(iter(next(iter(tasks.values()))["report_sets"].values()))["systems"]
    return {
        "radtag_results": FORMAT,
        "radtag": radtag_version(),
        "reports": "invented",
        "program": PROGRAM,
        "splits": list(request.splits),
        "systems": list(systems),
        "bootstrap": {"n_resamples": request.n_resamples, "seed": request.seed, "unit": "patient", "level": LEVEL},
        "tasks": tasks,
    }


def write_results_page(found: dict[str, Any], page: Path, figures: Path) -> None:
    """Both files; the page holds what `figures` says. Raises SinkError."""
    figures.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(figures) as temporary:
        temporary.write_text(json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    render_page(figures, page)


def render_page(figures: Path, page: Path) -> None:
    """The page from an existing results.json. Raises GoldError when that is none, SinkError when the disk refuses."""
    text = results_markdown(read_results(figures))
    page.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """The object of a results.json of this program. Raises GoldError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GoldError(f"{path}: file does not exist; '{PROGRAM}' writes it") from None
    except ValueError:
        raise GoldError(f"{path}: is no JSON; a file that '{PROGRAM}' wrote is expected") from None
    if not isinstance(found, dict) or found.get("radtag_results") != FORMAT:
        raise GoldError(f"{path}: has no \"radtag_results\": {FORMAT}; a file that '{PROGRAM}' wrote is expected")
    return found


def n_failed(found: dict[str, Any]) -> int:
    """Rows without an answer, over all tasks, splits and systems."""
    sets = [task["report_sets"][split] for task in found["tasks"].values() for split in found["splits"]]
    return sum(system["n_failed"] for some in sets for system in some["systems"].values())


def _task_object(task: Task, request: PageRequest, progress: Callable[[str], Progress] | None) -> dict[str, Any]:
    systems = parse_systems(request.systems, task=task.name, gpu_layers=request.gpu_layers, threads=request.threads)
    found: dict[str, Results] = {}
    for split, gold in _gold(task, request).items():
        found[split] = run_evaluation(
            task,
            gold,
            systems,
            out=request.records / task.name,
            gold_name=f"{task.name}/{split}.jsonl",
            n_resamples=request.n_resamples,
            seed=request.seed,
            workers=request.workers,
            progress=None if progress is None else _named(progress, f"{task.name} {split}"),
        )
    if len(found) > 1:
        found[" + ".join(found)] = _together(task, list(found.values()), request)
    return {"sha256": task.content_hash, "report_sets": {name: _set_object(results) for name, results in found.items()}}


def _named(progress: Callable[[str], Progress], about: str) -> Callable[[str], Progress]:
    return lambda system: progress(f"{about}: {system}")


def _gold(task: Task, request: PageRequest) -> dict[str, list[GoldReport]]:
    found: dict[str, list[GoldReport]] = {}
    where: dict[str, Path] = {}
    for split in request.splits:
        path = request.corpus / task.name / f"{split}.jsonl"
        found[split] = read_gold_reports(path, task)
        for report in found[split]:
            if report.report_id in where:
                first = where[report.report_id]
                raise GoldError(f"{path}: report_id '{report.report_id}' stands in {first} too; splits share no report")
            where[report.report_id] = path
    return found


def _together(task: Task, parts: Sequence[Results], request: PageRequest) -> Results:
    """The splits as one set of reports, from the answers that are there."""
    gold = [report for part in parts for report in part.gold]
    answers = [_joined([part.systems[place].answers for part in parts]) for place in range(len(parts[0].systems))]
    name = " + ".join(part.gold_name for part in parts)
    return evaluate(task, gold, answers, gold_name=name, n_resamples=request.n_resamples, seed=request.seed)


def _joined(parts: Sequence[SystemAnswers]) -> SystemAnswers:
    same = len({part.fingerprint for part in parts}) == 1
    return replace(
        parts[0],
        answers=tuple(answer for part in parts for answer in part.answers),
        states_relations=any(part.states_relations for part in parts),
        fingerprint=parts[0].fingerprint if same else None,
        n_tagged=sum(part.n_tagged for part in parts),
    )


def _set_object(results: Results) -> dict[str, Any]:
    whole = results.as_object()
    systems = {}
    for system in results.systems:
        found = {name: value for name, value in whole["systems"][system.name].items() if name not in _NOT_ON_A_PAGE}
        more = {name: plain(figure) for name, figure in page_figures(results, system).items()}
        systems[system.name] = {**found, "figures": {**found["figures"], **more}}
    return {
        "gold": whole["gold"],
        "counts": gold_counts(results),
        "notes": whole["notes"],
        "systems": systems,
        "comparisons": whole["comparisons"],
    }

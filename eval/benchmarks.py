"""Public data sets that users download, as annotated reports of our tasks: mapping (benchmarks.yaml), runs and tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from configs.yaml_lines import ConfigError, did_you_mean
from eval.ctrate import load_ctrate
from eval.openi import load_openi
from eval.public_sets import ALL, Benchmark, read_mapping
from eval.results import Results
from eval.run import evaluate, run_evaluation, write_evaluation
from eval.significance import N_RESAMPLES
from eval.systems import System, SystemAnswers
from eval.tables import Table, write_tables
from eval.verdict import percent, percent_interval
from pipeline.tagging import Progress


def load_benchmark(name: str, path: Path) -> Benchmark:
    """`ctrate` or `openi`.

    Raises:
        GoldError: a file that cannot be read, lacks a column, or holds a code that is not of the set's kind; with its row.
        ConfigError: another name.
    """
    mapping = read_mapping()
    if name == "ctrate":
        return load_ctrate(path, mapping.ctrate)
    if name == "openi":
        return load_openi(path, mapping.openi)
    raise ConfigError(f"benchmark '{name}' holds no annotated reports{did_you_mean(name, ('ctrate', 'openi'))}")


def run_benchmark(
    benchmark: Benchmark,
    systems: Sequence[System],
    *,
    out: Path,
    n_resamples: int = N_RESAMPLES,
    workers: int = 1,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Results]:
    """Tags all reports with every system and measures each subset. Records are kept under `out/records`."""
    whole = run_evaluation(
        benchmark.task,
        benchmark.gold,
        systems,
        out=out,
        gold_name=benchmark.name,
        scope=benchmark.scope,
        n_resamples=n_resamples,
        workers=workers,
        progress=progress,
    )
    return by_subset(benchmark, whole, n_resamples=n_resamples)


def by_subset(benchmark: Benchmark, whole: Results, *, n_resamples: int = N_RESAMPLES) -> dict[str, Results]:
    """The results of every subset that holds a report, from the answers of the whole set."""
    answers = [system.answers for system in whole.systems]
    results = {}
    for name, members in benchmark.subsets.items():
        if name == ALL:
            results[name] = whole
        elif members:
            chosen = [benchmark.gold[place] for place in members]
            results[name] = evaluate(
                benchmark.task,
                chosen,
                [_only(found, members) for found in answers],
                gold_name=f"{benchmark.name}, {name}",
                scope=benchmark.scope,
                n_resamples=n_resamples,
            )
    return results


def _only(found: SystemAnswers, members: Sequence[int]) -> SystemAnswers:
    return replace(found, answers=tuple(found.answers[place] for place in members))


def benchmark_table(benchmark: Benchmark, results: Mapping[str, Results]) -> Table:
    """One row a subset and system. Pair columns only where the set states places; undefined is –."""
    paired = bool(benchmark.scope.subjects)
    header = ["reports", "system", "n", "failed", "keys exact", "F1 published", "micro F1", "95 % interval", "macro F1"]
    if paired:
        header += ["pairs micro F1", "with parts", "95 % interval"]
    rows = []
    for name, found in results.items():
        for system in found.systems:
            figures, intervals = system.figures, system.intervals
            row = [name, system.name, str(system.score.n_reports), str(system.score.n_failed)]
            row += [percent(figures[f]) for f in ("keys_accuracy", "keys_f1", "keys_micro_f1")]
            row += [percent_interval(intervals["keys_micro_f1"]), percent(figures["keys_macro_f1"])]
            if paired:
                row += [percent(figures[f]) for f in ("pairs_micro_f1", "pairs_micro_f1_expanded")]
                row += [percent_interval(intervals["pairs_micro_f1_expanded"])]
            rows.append(tuple(row))
    return Table(benchmark.name, benchmark.title, " ".join(benchmark.notes), tuple(header), tuple(rows), 2)


def key_table(benchmark: Benchmark, results: Results) -> Table:
    """F1, precision and recall of every key that is scored, for each system."""
    rows = []
    for system in results.systems:
        for key, counts in system.score.per_key.items():
            numbers = (counts.n_gold, counts.n_predicted, counts.n_hit)
            shares = (counts.precision, counts.recall, counts.f1)
            rows.append((key, system.name, *(str(n) for n in numbers), *(percent(share) for share in shares)))
    header = ("key", "system", "gold", "predicted", "right", "precision", "recall", "F1")
    order = {key: place for place, key in enumerate(benchmark.scope.keys)}
    return Table(f"{benchmark.name}_keys", "Every key", "", header, tuple(sorted(rows, key=lambda r: order[r[0]])), 2)


def write_benchmark(benchmark: Benchmark, results: Mapping[str, Results], out: Path) -> list[Path]:
    """The tables, and a report of every subset, in `out`. Returns the reports. Raises SinkError."""
    write_tables([benchmark_table(benchmark, results), key_table(benchmark, results[ALL])], out / "tables")
    pages = []
    for name, found in results.items():
        pages.append(write_evaluation(found, out / re.sub(r"\W+", "_", name))[0])
    return pages

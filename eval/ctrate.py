"""CT-RATE's manually labelled reports (`train.csv`, `valid.csv`: a text and eighteen 0/1 columns) as annotated reports."""

from __future__ import annotations

from pathlib import Path

from configs.schema import load_task
from eval.gold import GoldError, GoldReport, Labels
from eval.public_sets import ALL, Benchmark, CtRateMapping, benchmark_scope, csv_rows, once, share_text

PRESENT = {"1": True, "0": False, "1.0": True, "0.0": False}


def load_ctrate(path: Path, mapping: CtRateMapping) -> Benchmark:
    """Every report, labelled for the mapped keys only.

    Raises:
        GoldError: a missing column or id, an id that stands twice, a label that is neither 0 nor 1, an empty text.
    """
    task = load_task(mapping.task)
    columns = [mapping.columns.report_id, mapping.columns.text, *mapping.keys]
    gold: list[GoldReport] = []
    seen: dict[str, str] = {}
    for where, row in csv_rows(path, columns):
        report_id, text = row[mapping.columns.report_id], row[mapping.columns.text]
        once(seen, report_id, where)
        if not text.strip():
            raise GoldError(f"{where}: '{mapping.columns.text}' is empty; a report is expected")
        present: dict[str, frozenset[str]] = {}
        for column, key in mapping.keys.items():
            if row[column].strip() not in PRESENT:
                raise GoldError(f"{where}: '{column}' is neither 0 nor 1")
            if PRESENT[row[column].strip()]:
                present[key] = frozenset()
        gold.append(GoldReport(Labels(report_id, present), text))
    if not gold:
        raise GoldError(f"{path}: holds no report")
    n_repeated = len(gold) - len({report.text for report in gold})
    notes = [
        f"{len(mapping.keys)} of the set's {len(mapping.keys) + len(mapping.not_mapped)} labels stand for a key of '{task.name}'; "
        f"not mapped: {', '.join(mapping.not_mapped)}.",
        *mapping.limits,
    ]
    if n_repeated:
        notes.append(f"{share_text(n_repeated, len(gold))} reports repeat the text of another one.")
    return Benchmark(
        name="ctrate",
        title=mapping.title,
        task=task,
        scope=benchmark_scope(task, list(mapping.keys.values()), has_places=False),
        gold=tuple(gold),
        subsets={ALL: tuple(range(len(gold)))},
        notes=tuple(notes),
    )

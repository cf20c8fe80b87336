"""The tables of an evaluation: one definition for the CSV files and the report. Undefined prints as –."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.errors import KINDS
from eval.metrics import Counts, SetScores
from eval.results import Results, SystemResult
from eval.score import HEADLINES, HeadlineFigure, denominators
from eval.verdict import p_text, percent, percent_interval, signed_points
from pipeline.sinks import whole_file

MAIN_FIGURES = ("keys_accuracy", "keys_f1", "keys_micro_f1", "keys_specificity", "pairs_exact", "pairs_macro_f1", "pairs_micro_f1")


@dataclass(frozen=True, slots=True)
class Table:
    """Cells are texts as they are printed; `name` is the CSV file's. The first `n_text` columns are no numbers."""

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int = 1


@dataclass(frozen=True, slots=True)
class MainCell:
    """A figure of the first screen as it is printed. `is_best`: no system has a higher one."""

    value: str
    interval: str
    n: int
    is_best: bool


def all_tables(results: Results) -> list[Table]:
    """Every table that has a row."""
    tables = [
        figures_table(results),
        comparisons_table(results),
        keys_table(results),
        subjects_table(results),
        pairs_table(results),
        subsets_table(results),
        negation_table(results),
        trust_table(results),
        errors_table(results),
        error_list_table(results),
    ]
    return [table for table in tables if table.rows]


def main_figures(results: Results) -> list[HeadlineFigure]:
    """The figures of the first screen."""
    return [item for item in HEADLINES if item.name in MAIN_FIGURES and (results.scope.subjects or not item.pairs)]


def main_rows(results: Results) -> list[tuple[SystemResult, list[MainCell]]]:
    """The first screen: one row a system."""
    rows = []
    for system in results.systems:
        n = denominators(system.score)
        cells = []
        for item in main_figures(results):
            value, best = system.figures[item.name], results.best(item.name)
            is_best = len(results.systems) > 1 and best is not None and best.figures[item.name] == value
            cells.append(MainCell(percent(value), percent_interval(system.shown_interval(item.name)), n[item.name], is_best))
        rows.append((system, cells))
    return rows


def figures_table(results: Results) -> Table:
    """Every headline figure of every system with interval and denominator."""
    rows = []
    for item in HEADLINES:
        if item.pairs and not results.scope.subjects:
            continue
        for system in results.systems:
            n = denominators(system.score)[item.name]
            kind = "pairs" if item.pairs else "keys"
            value, interval = percent(system.figures[item.name]), percent_interval(system.intervals[item.name])
            exact = percent_interval(system.wilson[item.name]) if item.name in system.wilson else "–"
            rows.append((kind, item.label, system.name, value, interval, exact, str(n), item.unit, item.about))
    note = (
        f"95 % intervals: bootstrap over patients ({results.n_resamples} resamples, seed {results.seed}); Wilson for proportions."
    )
    header = ("of", "figure", "system", "%", "95 % interval", "Wilson", "n", "n counts", "meaning")
    return Table("figures", "All figures", note, header, tuple(rows), 3)


def comparisons_table(results: Results) -> Table:
    """Every pair of systems: McNemar's test and the difference of per-report F1."""
    rows = []
    for c in results.comparisons:
        test = c.mcnemar
        rows.append(
            (
                c.what,
                c.first,
                c.second,
                *(str(x) for x in (c.n_reports, test.n_both_right, test.n_only_first, test.n_only_second, test.n_neither)),
                "exact" if test.exact else "chi-square",
                bare_p(test.p_value),
                bare_p(c.p_holm),
                "yes" if c.is_real else "not shown",
                signed_points(c.f1_difference),
                f"{signed_points(c.f1_interval.low)} to {signed_points(c.f1_interval.high)}",
            )
        )
    note = (
        "McNemar's test on reports that are exactly right, two-sided; Holm's correction over all rows of this table. "
        "F1 difference: mean over reports of the first's minus the second's F1, in points, with its 95 % bootstrap interval; "
        "a report that is rightly read as empty has F1 1. The interval allows for several reports of a patient, the test does not."
    )
    header = (
        "of", "first", "second", "n", "both right", "only first", "only second", "neither", "test", "p", "p (Holm)", "real?",
        "F1 difference", "95 % interval",
    )  # fmt: skip
    return Table("comparisons", "Is the difference real?", note, header, tuple(rows), 3)


def keys_table(results: Results) -> Table:
    """Each key of each system."""
    rows = []
    for key in results.scope.keys:
        for system in results.systems:
            counts = system.score.per_key[key]
            rows.append((key, system.name, *_counts(counts), percent_interval(system.per_key_f1_interval[key])))
    header = ("key", "system", "in gold", "said", "right", "missed", "too many", "precision", "recall", "F1", "95 % interval")
    return Table("keys", "Each key", "Counts are reports.", header, tuple(rows), 2)


def subjects_table(results: Results) -> Table:
    """Published and second reading of each subject."""
    rows = []
    for subject in results.scope.subjects:
        for system in results.systems:
            if system.states_relations:
                published, second = system.score.pair_scores[subject], system.score.pair_scores_second[subject]
                rows.append(
                    (
                        subject,
                        system.name,
                        *_set_cells(published),
                        *_set_cells(second)[:1],
                        percent(second.accuracy),
                        percent(second.f1),
                    )
                )
    note = (
        "Published reading: over the reports whose gold has the subject (n). Precision over those with a predicted value, "
        "recall over those with a gold value. Second reading: reports in which only the system has the subject count too, as wrong."
    )
    header = (
        "subject", "system", "n", "accuracy", "precision", "n said", "recall", "n gold", "F1", "n (second)", "accuracy (second)",
        "F1 (second)",
    )  # fmt: skip
    return Table("subjects", "Each subject's values", note, header, tuple(rows), 2)


def pairs_table(results: Results) -> Table:
    """Each subject and value."""
    rows = []
    for system in results.systems:
        if system.states_relations:
            for name, counts in system.score.per_pair.items():
                subject, _, value = name.partition(":")
                rows.append((subject, value, system.name, *_counts(counts)))
    header = ("subject", "value", "system", "in gold", "said", "right", "missed", "too many", "precision", "recall", "F1")
    return Table("pairs", "Each pair", "Values as written: BLL is not RLL + LLL here.", header, tuple(rows), 3)


def subsets_table(results: Results) -> Table:
    """Each group of reports."""
    rows = []
    for system in results.systems:
        for s in system.subsets:
            pairs = ("–", "–")
            if system.states_relations:
                pairs = (f"{s.n_exact_pairs} of {s.n_reports}", percent(s.pairs_micro_f1))
            exact = (f"{s.n_exact_keys} of {s.n_reports}", percent(s.keys_accuracy), percent_interval(s.keys_accuracy_interval))
            rows.append((s.group, s.name, system.name, *exact, percent(s.keys_f1), percent(s.keys_micro_f1), *pairs))
    note = (
        "Negated: the text denies a finding (keywords with the negation reader). Hedged: a word such as 'r/o' or '의심' in the "
        "sentence of a stated finding. Both are read from the text by rules, not annotated. 95 %: Wilson."
    )
    header = (
        "group",
        "reports",
        "system",
        "exact keys",
        "%",
        "95 % interval",
        "keys F1",
        "keys micro F1",
        "exact pairs",
        "pairs micro F1",
    )
    return Table("subsets", "Which kinds of report", note, header, tuple(rows), 3)


def negation_table(results: Results) -> Table:
    """Exact keys with against without negated findings."""
    rows = []
    for system in results.systems:
        if (found := system.negation) is not None:
            (right_with, right_without), (n_with, n_without) = found.n_right, found.n_reports
            rows.append(
                (
                    system.name,
                    f"{right_with} of {n_with}",
                    percent(right_with / n_with if n_with else math.nan),
                    f"{right_without} of {n_without}",
                    percent(right_without / n_without if n_without else math.nan),
                    "–" if math.isnan(found.statistic) else f"{found.statistic:.2f}",
                    bare_p(found.p_value),
                    bare_p(found.fisher_p_value),
                    "an expected count is below 5: read Fisher's" if found.small and not math.isnan(found.statistic) else "",
                )
            )
    note = "Reports whose keys are exactly right. Chi-square with Yates' correction, and Fisher's exact test; one test a system."
    header = ("system", "with negation", "%", "without", "%", "chi-square", "p", "p (Fisher)", "remark")
    return Table("negation", "Do negated findings mislead it?", note, header, tuple(rows))


def trust_table(results: Results) -> Table:
    """Calibration and triage of what has a confidence."""
    rows = []
    for system in results.systems:
        for kind, trust in system.trust.items():
            t, ece = trust.triage, trust.reliability.ece
            calibration = "–" if kind == "reports" else percent(ece)
            errors = (percent(t.error_least_sure), percent(t.error_rest), percent(t.errors_found))
            rows.append((system.name, kind, str(t.n), str(t.n_wrong), calibration, *errors))
    note = (
        "ECE: mean distance of stated probability and observed share, ten bins, in points. Triage: how often the least sure 20 % "
        "are wrong against the rest, and which share of all errors a review of them finds. A report is as sure as its least sure "
        "decision. "
        "Systems that give no confidence are not listed; relations that rules decided have none."
    )
    header = ("system", "decisions", "n", "wrong", "ECE", "wrong in least sure 20 %", "wrong in the rest", "errors found in 20 %")
    return Table("trust", "Can its confidence be trusted?", note, header, tuple(rows), 2)


def errors_table(results: Results) -> Table:
    """How many errors of each kind."""
    rows = []
    for system in results.systems:
        for what in ("keys", "values"):
            some = [error for error in system.errors if (error.subject is None) == (what == "keys")]
            counts = [str(sum(error.kind == kind for error in some)) for kind in KINDS]
            reports = len({error.report_id for error in some})
            if what == "keys" or system.states_relations:
                rows.append((system.name, what, *counts, str(len(some)), f"{reports} of {len(results.gold)}"))
    note = "keys: one error a report at most. values: one a report and subject, where gold and system both have the subject."
    return Table("errors", "What kinds of error", note, ("system", "of", *KINDS, "all", "reports"), tuple(rows), 2)


def error_list_table(results: Results) -> Table:
    """Every single error by report id."""
    rows = [
        (system.name, e.report_id, e.kind, e.subject or "keys", " ".join(e.missed), " ".join(e.extra))
        for system in results.systems
        for e in system.errors
    ]
    return Table("error_list", "Every error", "", ("system", "report", "kind", "of", "missed", "too many"), tuple(rows), 6)


def bare_p(p_value: float) -> str:
    """A p value for a column of them."""
    return p_text(p_value).replace("\u00a0", " ").removeprefix("p ").removeprefix("= ")


def write_tables(tables: Sequence[Table], folder: Path) -> list[Path]:
    """One CSV a table. Raises SinkError."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for table in tables:
        path = folder / f"{table.name}.csv"
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([table.header, *table.rows])
        paths.append(path)
    return paths


def _counts(counts: Counts) -> tuple[str, ...]:
    missed, extra = counts.n_gold - counts.n_hit, counts.n_predicted - counts.n_hit
    shares = (percent(counts.precision), percent(counts.recall), percent(counts.f1))
    return (*(str(n) for n in (counts.n_gold, counts.n_predicted, counts.n_hit, missed, extra)), *shares)


def _set_cells(s: SetScores) -> tuple[str, ...]:
    said = (percent(s.precision), str(s.n_with_prediction))
    return (str(s.n_reports), percent(s.accuracy), *said, percent(s.recall), str(s.n_with_gold), percent(s.f1))

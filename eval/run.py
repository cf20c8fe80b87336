"""`run_evaluation`: systems on annotated reports, to figures, tests and intervals. `write_evaluation` puts them on disk."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from configs.schema import Task
from eval.calibration import entity_decisions, relation_decisions, reliability, report_decisions, triage
from eval.errors import Confusion, confusion, report_errors
from eval.gold import GoldError, GoldReport, ScoredPair, gold_sha256, texts_sha256
from eval.metrics import NAN, Array, Labelled, Sums, key_sets, relation_sets, report_f1
from eval.results import Comparison, Results, SubsetScore, SystemResult, Trust
from eval.score import HEADLINES, Measures, Scope, headline, measures, scope_of, score, within
from eval.significance import (
    N_RESAMPLES,
    SEED,
    UNDEFINED,
    ChiSquare,
    Interval,
    bootstrap_mean,
    chi_square,
    holm,
    mcnemar,
    percentile_interval,
    resample_weights,
    wilson,
)
from eval.subsets import Subset, TextTraits, subsets, text_traits
from eval.systems import System, SystemAnswers, system_answers
from pipeline.tagging import Progress

RECORDS_FOLDER = "records"
MIN_PATIENTS = 2
FEW_REPORTS = 50


def run_evaluation(
    task: Task,
    gold: Sequence[GoldReport],
    systems: Sequence[System],
    *,
    out: Path,
    gold_name: str,
    scope: Scope | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
    workers: int = 1,
    progress: Callable[[str], Progress] | None = None,
) -> Results:
    """Tags the gold with every system that tags, and measures all of them.

    Args:
        out: Records are kept under `out/records`; nothing else is written.
        scope: For gold that was labelled for some keys, or without values; None means the whole task.
        progress: Gives the progress of the system of this name.

    Raises:
        GoldError: no report, no system, a report without text or without record; and what tagging raises.
    """
    if not systems:
        raise GoldError("no system is given; at least one is expected")
    if not gold:
        raise GoldError(f"{gold_name}: holds no report; at least one annotated report is expected")
    answers = [
        system_answers(
            system, task, gold, out / RECORDS_FOLDER, progress=None if progress is None else progress(system.name), workers=workers
        )
        for system in systems
    ]
    return evaluate(task, gold, answers, gold_name=gold_name, scope=scope, n_resamples=n_resamples, seed=seed)


def evaluate(
    task: Task,
    gold: Sequence[GoldReport],
    answers: Sequence[SystemAnswers],
    *,
    gold_name: str,
    scope: Scope | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = SEED,
) -> Results:
    """Measures answers that are there. Writes nothing."""
    scope = scope_of(task) if scope is None else scope
    patients = patients_of(gold)
    weights = resample_weights(patients, n_resamples=n_resamples, seed=seed)
    traits = [None if report.text is None else text_traits(task, report.text) for report in gold]
    groups = subsets(gold, traits)
    results = [
        _system_result(task, scope, gold, found, weights, groups, traits, n_patients=len(set(patients))) for found in answers
    ]
    return Results(
        task=task,
        scope=scope,
        gold=tuple(gold),
        gold_name=gold_name,
        gold_sha256=gold_sha256(gold),
        texts_sha256=texts_sha256(gold),
        n_patients=len(set(patients)),
        n_without_patient=sum(report.patient_id is None for report in gold),
        n_resamples=n_resamples,
        seed=seed,
        systems=tuple(results),
        comparisons=tuple(_comparisons(scope, gold, results, weights, n_patients=len(set(patients)))),
        notes=tuple(_notes(gold, results, scope)),
    )


def patients_of(gold: Sequence[GoldReport]) -> list[str]:
    """Who is drawn anew in a resample, report by report; one without a patient is a patient of its own."""
    return [report.patient_id if report.patient_id is not None else f"\0{report.report_id}" for report in gold]


def scored_pairs(gold: Sequence[GoldReport], found: SystemAnswers, scope: Scope) -> list[ScoredPair]:
    """Gold and answers within the scope."""
    return within(scope, [ScoredPair(g.labels, a.labels) for g, a in zip(gold, found.answers, strict=True)])


def _system_result(
    task: Task,
    scope: Scope,
    gold: Sequence[GoldReport],
    found: SystemAnswers,
    weights: Array,
    groups: Sequence[Subset],
    traits: Sequence[TextTraits | None],
    *,
    n_patients: int,
) -> SystemResult:
    pairs = scored_pairs(gold, found, scope)
    table = score(task, pairs, scope=scope)
    matrices = measures(task, scope, pairs)
    hidden = {item.name for item in HEADLINES if item.pairs and not found.states_relations}
    figures = {name: NAN if name in hidden else value for name, value in table.headline.items()}
    resampled = headline(matrices, weights)
    intervals = {
        name: UNDEFINED if math.isnan(figures[name]) or n_patients < MIN_PATIENTS else percentile_interval(values)
        for name, values in resampled.items()
    }
    right, right_pairs = _exact(key_sets(pairs)), _exact(relation_sets(pairs, scope.subjects))
    right_empty = [fine for fine, pair in zip(right, pairs, strict=True) if not pair.gold.keys]
    return SystemResult(
        name=found.name,
        answers=found,
        score=table,
        figures=figures,
        intervals=intervals,
        wilson={
            "keys_accuracy": wilson(sum(right), len(right)),
            "keys_specificity": wilson(sum(right_empty), len(right_empty)),
            "pairs_exact": UNDEFINED if math.isnan(figures["pairs_exact"]) else wilson(sum(right_pairs), len(right_pairs)),
        },
        per_key_f1_interval=_per_key_intervals(matrices, weights, n_patients=n_patients),
        negation=_negation(right, traits),
        subsets=tuple(_subset_score(task, scope, pairs, group, pairs_too=found.states_relations) for group in groups),
        trust=_trust(gold, found, scope, pairs),
        errors=tuple(report_errors(task, scope if found.states_relations else Scope(scope.keys, ()), pairs)),
        confusions=_confusions(task, scope, pairs),
    )


def _exact(sets: Labelled) -> list[bool]:
    return [gold == said for gold, said in sets]


def _per_key_intervals(matrices: Measures, weights: Array, *, n_patients: int) -> dict[str, Interval]:
    return {
        key: UNDEFINED if n_patients < MIN_PATIENTS else percentile_interval(Sums(weights @ matrix).micro_f1)
        for key, matrix in matrices.per_key.items()
    }


def _negation(right: Sequence[bool], traits: Sequence[TextTraits | None]) -> ChiSquare | None:
    known = [(fine, trait.negated) for fine, trait in zip(right, traits, strict=True) if trait is not None]
    return chi_square([fine for fine, _ in known], [negated for _, negated in known]) if known else None


def _subset_score(task: Task, scope: Scope, pairs: Sequence[ScoredPair], group: Subset, *, pairs_too: bool) -> SubsetScore:
    members = [pairs[place] for place in group.members]
    table = score(task, members, scope=scope)
    n_exact = sum(_exact(key_sets(members)))
    return SubsetScore(
        group=group.group,
        name=group.name,
        n_reports=len(members),
        n_exact_keys=n_exact,
        keys_accuracy=table.keys.accuracy,
        keys_accuracy_interval=wilson(n_exact, len(members)),
        keys_f1=table.keys.f1,
        keys_micro_f1=table.key_micro_f1,
        n_exact_pairs=sum(_exact(relation_sets(members, scope.subjects))) if pairs_too else 0,
        pairs_micro_f1=table.pair_micro_f1 if pairs_too else NAN,
    )


def _trust(gold: Sequence[GoldReport], found: SystemAnswers, scope: Scope, pairs: Sequence[ScoredPair]) -> dict[str, Trust]:
    labels = [pair.gold for pair in pairs]
    relations = relation_sets(pairs, scope.subjects)
    right = [
        fine and (not found.states_relations or gold_set == said)
        for fine, (gold_set, said) in zip(_exact(key_sets(pairs)), relations, strict=True)
    ]
    decisions = {
        "entities": entity_decisions(labels, found.answers, scope),
        "relations": relation_decisions(labels, found.answers, scope),
        "reports": report_decisions(labels, found.answers, scope, right),
    }
    return {kind: Trust(reliability(some), triage(some)) for kind, some in decisions.items() if some}


def _confusions(task: Task, scope: Scope, pairs: Sequence[ScoredPair]) -> dict[str, Confusion]:
    return {
        group: confusion(key_sets(pairs), names)
        for group, names in task.groups.items()
        if len(names) > 1 and set(names) <= set(scope.keys)
    }


def _comparisons(
    scope: Scope, gold: Sequence[GoldReport], systems: Sequence[SystemResult], weights: Array, *, n_patients: int
) -> list[Comparison]:
    found: list[Comparison] = []
    for what in ("keys", "pairs") if scope.subjects else ("keys",):
        sets = {
            system.name: key_sets(pairs) if what == "keys" else relation_sets(pairs, scope.subjects)
            for system in systems
            if what == "keys" or system.states_relations
            for pairs in [scored_pairs(gold, system.answers, scope)]
        }
        for first, second in combinations(sets, 2):
            difference = np.array([report_f1(*a) - report_f1(*b) for a, b in zip(sets[first], sets[second], strict=True)])
            found.append(
                Comparison(
                    first,
                    second,
                    what,
                    len(gold),
                    mcnemar(_exact(sets[first]), _exact(sets[second])),
                    NAN,
                    float(difference.mean()),
                    bootstrap_mean(difference.tolist(), weights) if n_patients >= MIN_PATIENTS else UNDEFINED,
                )
            )
    corrected = holm([comparison.mcnemar.p_value for comparison in found])
    return [replace(comparison, p_holm=p) for comparison, p in zip(found, corrected, strict=True)]


def _notes(gold: Sequence[GoldReport], systems: Sequence[SystemResult], scope: Scope) -> list[str]:
    """What a reader must know to read the figures rightly."""
    notes = []
    n = len(gold)
    if n < FEW_REPORTS:
        notes.append(f"{n} reports are few: expect wide intervals, and read single keys with care.")
    if n_without := sum(report.patient_id is None for report in gold):
        notes.append(f"{n_without} of {n} reports have no patient id; each counts as a patient of its own in the intervals.")
    if n_untold := sum(report.text is None for report in gold):
        notes.append(f"{n_untold} of {n} reports have no text: they are in no group by negation, hedging, language or length.")
    if absent := [key for key in scope.keys if not any(key in report.labels.values for report in gold)]:
        notes.append(f"In no gold report: {', '.join(absent)}. Recall of these keys is undefined (–).")
    for system in systems:
        if n_failed := system.score.n_failed:
            notes.append(
                f"{system.name}: {n_failed} of {n} reports have no answer (failed or rejected) and count as wrong everywhere."
            )
        if scope.subjects and not system.states_relations:
            notes.append(f"{system.name} states no relations: its pair figures are undefined (–), not 0.")
    return notes


def write_evaluation(results: Results, out: Path) -> list[Path]:
    """`report.html`, `results.json`, `tables/*.csv`, `figures/*.svg` and `*.png` in `out`. Returns the first two.

    Raises:
        SinkError: the disk refuses.
    """
    from eval.figures import drawings, write_figures
    from eval.report import write_report
    from eval.results import write_results
    from eval.tables import all_tables, write_tables

    out.mkdir(parents=True, exist_ok=True)
    tables = all_tables(results)
    figures = drawings(results)
    write_tables(tables, out / "tables")
    inline = write_figures(figures, out / "figures")
    write_results(results, out / "results.json")
    write_report(results, tables, figures, inline, out / "report.html")
    return [out / "report.html", out / "results.json"]

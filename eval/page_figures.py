"""The figures that goals ask for beyond those of an evaluation: hint recall, negated reports, values out of the text, trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.calibration import LEAST_SURE, N_BINS, Decision, entity_decisions, relation_decisions, report_decisions
from eval.metrics import NAN, Array, Sums, contributions, key_sets, ratio, relation_sets
from eval.results import Results, SystemResult
from eval.run import MIN_PATIENTS, patients_of, scored_pairs
from eval.significance import UNDEFINED, Interval, percentile_interval, resample_weights, wilson

KINDS = ("reports", "entities", "relations")


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A fraction with its interval at 95 %, and how many `unit` it is out of. `wilson` stands beside plain proportions."""

    value: float
    interval: Interval
    n: int
    unit: str
    wilson: Interval | None = None


def page_figures(results: Results, system: SystemResult) -> dict[str, PageFigure]:
    """By name in results.json. A figure that the system cannot have (it gives no hints, no confidence, no spans) is not there."""
    weights = resample_weights(patients_of(results.gold), n_resamples=results.n_resamples, seed=results.seed)
    return {
        **_hint_recall(results, system, weights),
        **_negation(system),
        **_values_out_of_the_text(results, system),
        **_trust(results, system, weights),
    }


def gold_counts(results: Results) -> dict[str, int]:
    """What figures are out of, by goals.Count."""
    system = results.systems[0]
    score, negation = system.score, system.negation
    return {
        "reports": score.n_reports,
        "reports with a key": score.keys.n_with_gold,
        "reports without a key": score.keys.n_gold_empty,
        "reports with a negated finding": 0 if negation is None else negation.n_reports[0],
        "keys": score.key_counts.n_gold,
        "values": sum(scores.n_reports for scores in score.pair_scores.values()),
        "pairs": score.pair_counts.n_gold,
    }


def _interval(results: Results, resampled: Array) -> Interval:
    return percentile_interval(resampled) if results.n_patients >= MIN_PATIENTS else UNDEFINED


def _share(n_some: int, n: int) -> float:
    return n_some / n if n else NAN


def _hint_recall(results: Results, system: SystemResult, weights: Array) -> dict[str, PageFigure]:
    """Recall of the hints that stage 1 gave to stage 2; a row without hints (failed, rejected) recalls nothing."""
    hints = [None if answer.record is None else answer.record.hints for answer in system.answers.answers]
    if all(some is None for some in hints):
        return {}
    keys = frozenset(results.scope.keys)
    table = contributions(
        [(report.labels.keys & keys, frozenset(some or ())) for report, some in zip(results.gold, hints, strict=True)]
    )
    whole, resampled = Sums(table.sum(axis=0)), Sums(weights @ table)
    n_hit, n_gold = int(whole.of("n_hit")), int(whole.of("n_gold"))
    return {
        "hint_recall": PageFigure(
            float(whole.recall), _interval(results, resampled.recall), int(whole.of("n_with_gold")), "reports with a gold key"
        ),
        "hint_micro_recall": PageFigure(
            _share(n_hit, n_gold),
            _interval(results, ratio(resampled.of("n_hit"), resampled.of("n_gold"))),
            n_gold,
            "gold keys",
            wilson(n_hit, n_gold),
        ),
    }


def _negation(system: SystemResult) -> dict[str, PageFigure]:
    if system.negation is None:
        return {}
    names = (("negated_accuracy", "reports with a negated finding"), ("unnegated_accuracy", "reports without"))
    counts = zip(names, system.negation.n_right, system.negation.n_reports, strict=True)
    return {name: PageFigure(_share(right, n), wilson(right, n), n, unit) for (name, unit), right, n in counts}


def _values_out_of_the_text(results: Results, system: SystemResult) -> dict[str, PageFigure]:
    """Relations whose value stands nowhere in the text and is not implied by their subject."""
    records = [answer.record for answer in system.answers.answers if answer.record is not None]
    if not system.states_relations or not records:
        return {}
    relations = [relation for record in records for relation in record.relations or ()]
    entities = results.task.entities
    n_out = sum(r.value_span is None and r.value not in entities[r.subject].implied for r in relations)
    n = len(relations)
    return {"values_out_of_text": PageFigure(_share(n_out, n), wilson(n_out, n), n, "relations")}


def _trust(results: Results, system: SystemResult, weights: Array) -> dict[str, PageFigure]:
    figures = {}
    for kind, rows in _decisions(results, system).items():
        if kind not in system.trust:
            continue
        trust = system.trust[kind]
        error_surest, errors_found = triage_resampled(rows, weights)
        n, n_wrong = trust.triage.n, trust.triage.n_wrong
        figures[f"error_surest_{kind}"] = PageFigure(trust.triage.error_rest, _interval(results, error_surest), n, kind)
        figures[f"errors_found_{kind}"] = PageFigure(trust.triage.errors_found, _interval(results, errors_found), n_wrong, "errors")
        if kind != "reports":  # the certainty of a report's least sure decision is no probability that the report is right
            resampled = calibration_error_resampled(rows, weights)
            figures[f"calibration_error_{kind}"] = PageFigure(trust.reliability.ece, _interval(results, resampled), n, kind)
    return figures


def _decisions(results: Results, system: SystemResult) -> Mapping[str, list[tuple[int, Decision]]]:
    """By kind, each with the place of its report."""
    found: dict[str, list[tuple[int, Decision]]] = {kind: [] for kind in KINDS}
    pairs = scored_pairs(results.gold, system.answers, results.scope)
    keys, values = key_sets(pairs), relation_sets(pairs, results.scope.subjects)
    for place, (pair, answer) in enumerate(zip(pairs, system.answers.answers, strict=True)):
        right = all(gold == said for gold, said in ((keys[place], values[place]) if system.states_relations else (keys[place],)))
        gold, one = [pair.gold], [answer]
        found["entities"] += [(place, d) for d in entity_decisions(gold, one, results.scope)]
        found["relations"] += [(place, d) for d in relation_decisions(gold, one, results.scope)]
        found["reports"] += [(place, d) for d in report_decisions(gold, one, results.scope, [right])]
    return found


def triage_resampled(rows: Sequence[tuple[int, Decision]], weights: Array) -> tuple[Array, Array]:
    """`Triage.error_rest` and `errors_found` of every resample. `weights` (n_resamples, n_reports), rows name their report."""
    ordered = sorted(rows, key=lambda row: row[1].certainty)
    certainty = np.array([decision.certainty for _, decision in ordered])
    last_of_tie = np.flatnonzero(np.append(np.diff(certainty) != 0, True))
    drawn = weights[:, [place for place, _ in ordered]]
    wrong = np.array([decision.wrong for _, decision in ordered], dtype=np.float64)
    reviewed, found = drawn.cumsum(axis=1)[:, last_of_tie], (drawn * wrong).cumsum(axis=1)[:, last_of_tie]
    n, n_wrong = reviewed[:, -1], found[:, -1]
    least = LEAST_SURE * n
    begin = np.zeros((len(weights), 1))
    curves = zip(least, np.hstack([begin, reviewed]), np.hstack([begin, found]), strict=True)
    n_found = np.array([np.interp(cut, x, y) for cut, x, y in curves])
    return ratio(n_wrong - n_found, n - least), ratio(n_found, n_wrong)


def calibration_error_resampled(rows: Sequence[tuple[int, Decision]], weights: Array) -> Array:
    """`Reliability.ece` of every resample: n |mean probability - share| of a bin is |sum of probabilities - number there|."""
    distance = np.zeros((len(rows), N_BINS))
    for row, (_, decision) in enumerate(rows):
        distance[row, min(int(decision.probability * N_BINS), N_BINS - 1)] = decision.probability - decision.there
    drawn = weights[:, [place for place, _ in rows]]
    return ratio(np.abs(drawn @ distance).sum(axis=1), drawn.sum(axis=1))

"""The evaluation in plain sentences: which system is best, whether the difference is real, where it fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Task
from eval.results import Comparison, Results, SystemResult
from eval.significance import Interval

WEAK_KEYS = 3
EXACT_FIGURE = {"keys": "keys_accuracy", "pairs": "pairs_exact"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whole sentences. `comparisons` has those with the best system first; `is_real` stands beside each."""

    best: tuple[str, ...]
    comparisons: tuple[tuple[str, bool], ...]
    other_comparisons: tuple[tuple[str, bool], ...]
    weakness: str


def percent(fraction: float) -> str:
    """`93.4` for 0.934, `–` for nan."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def percent_interval(interval: Interval) -> str:
    """`90.1–96.0`; `–` where it is undefined."""
    return "–" if math.isnan(interval.low) else f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def p_text(p_value: float) -> str:
    """`p < 0.001`, `p = 0.042`, or `p –`, with no-break spaces."""
    if math.isnan(p_value):
        return "p –"
    return (
        "p\u00a0<\u00a00.001"
        if p_value < 0.001
        else f"p\u00a0=\u00a0{min(p_value, 1.0):.3f}"
        if p_value < 0.1
        else f"p\u00a0=\u00a0{min(p_value, 1.0):.2f}"
    )


def signed_points(fraction: float) -> str:
    """A difference in percentage points with its sign."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:+.1f}".replace("-", "−")


def verdict(results: Results) -> Verdict:
    """The first screen of the report."""
    leaders = {what: results.best(figure) for what, figure in EXACT_FIGURE.items()}
    names = {leader.name for leader in leaders.values() if leader is not None}
    first: list[tuple[str, bool]] = []
    rest: list[tuple[str, bool]] = []
    for comparison in _ordered(results, leaders):
        leader = leaders[comparison.what]
        of_leader = leader is not None and leader.name in (comparison.first, comparison.second)
        (first if of_leader else rest).append((_sentence(results, comparison), comparison.is_real))
    best = [_best(results, what, leader) for what, leader in leaders.items() if leader is not None]
    if len(results.systems) == 1:
        best.append("There is one system only: nothing to compare it with.")
    shown = next((leader for leader in leaders.values() if leader is not None), results.systems[0])
    weak = [shown] if len(names) < 2 else [system for system in results.systems if system.name in names]
    return Verdict(tuple(best), tuple(first), tuple(rest), " ".join(_weakness(results.task, system) for system in weak))


def _ordered(results: Results, leaders: dict[str, SystemResult | None]) -> list[Comparison]:
    """Keys before pairs; within each the comparisons by the size of the difference, smallest first: rivals before also-rans."""
    return sorted(results.comparisons, key=lambda c: (c.what != "keys", abs(c.mcnemar.n_only_first - c.mcnemar.n_only_second)))


def _best(results: Results, what: str, leader: SystemResult) -> str:
    figure = EXACT_FIGURE[what]
    value, interval = leader.figures[figure], leader.shown_interval(figure)
    level = [s.name for s in results.systems if s is not leader and s.figures[figure] == value]
    share = f"{percent(value)} % of {len(results.gold)} reports exactly right (95 % interval {percent_interval(interval)})"
    if level:
        return f"Level on {what}: {', '.join([leader.name, *level])}, {share}."
    rivals = [c for c in results.comparisons if c.what == what and leader.name in (c.first, c.second)]
    unproven = [c.second if c.first == leader.name else c.first for c in rivals if not c.is_real]
    doubt = (
        f"; not shown to be better than {_listed(unproven)}"
        if unproven
        else "; better than every other, beyond chance"
        if rivals
        else ""
    )
    return f"Best on {what}: {leader.name}, {share}{doubt}."


def _sentence(results: Results, comparison: Comparison) -> str:
    figure, test = EXACT_FIGURE[comparison.what], comparison.mcnemar
    better = comparison.better or comparison.first
    worse = comparison.second if better == comparison.first else comparison.first
    values = {s.name: s.figures[figure] for s in results.systems}
    only_better, only_worse = test.n_only_first, test.n_only_second
    if better != comparison.first:
        only_better, only_worse = only_worse, only_better
    head = f"{comparison.what.capitalize()}: {better} {percent(values[better])} % against {worse} {percent(values[worse])} % exact"
    counts = f"{_reports(only_better)} only {better} reads right, {only_worse} only {worse}; {p_text(comparison.p_holm)}"
    if comparison.is_real:
        return f"{head} — a real difference ({counts})."
    if comparison.better is None:
        return f"{head} — level ({counts})."
    apart = comparison.f1_interval.excludes(0)
    low, high = sorted((abs(comparison.f1_interval.low), abs(comparison.f1_interval.high))) if apart else (math.nan, math.nan)
    ahead = comparison.first if comparison.f1_difference > 0 else comparison.second
    yet = f"; yet the F1 a report of {ahead} is higher by {100 * low:.1f} to {100 * high:.1f} points" if apart else ""
    return f"{head} — no real difference shown ({counts}){yet}."


def _weakness(task: Task, system: SystemResult) -> str:
    wrong = {key: (counts.n_gold - counts.n_hit, counts.n_predicted - counts.n_hit) for key, counts in system.score.per_key.items()}
    worst = sorted((key for key in wrong if sum(wrong[key])), key=lambda key: -sum(wrong[key]))[:WEAK_KEYS]
    if not system.errors:
        return f"{system.name} makes no error on these reports."
    keys = ", ".join(f"{task.label(key)} ({wrong[key][0]} missed, {wrong[key][1]} too many)" for key in worst)
    kinds = Counter(error.kind for error in system.errors)
    total = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    n_reports = len({error.report_id for error in system.errors})
    where = f"Where {system.name} fails: {keys}; " if worst else f"Where {system.name} fails: no key is wrong; "
    return f"{where}{len(system.errors)} errors in {n_reports} reports ({total})."


def _reports(n: int) -> str:
    return f"{n} report{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"

"""docs/RESULTS.md from the object of docs/results.json and the goals, and from nothing else. Undefined prints as –."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from eval.goals import (
    JUDGED_TOGETHER,
    NEGATED_AT_LEAST,
    PUBLISHED,
    PUBLISHED_NEGATION,
    RIVAL,
    SIGNIFICANT_BELOW,
    STAGE_1_TABLES,
    STAGE_2_TABLES,
    TRUST_TABLES,
    GoalLine,
    GoalTable,
)
from eval.significance import Interval
from eval.tables import bare_p
from eval.verdict import percent, percent_interval, signed_points

TASK_LABELS = {"chest_ct": "Chest CT", "brain_mri": "Brain MRI"}
SETS_HEADER = "invented reports"

_HEAD = """# How good is radtag

**Every figure of ours on this page is measured on invented reports**, authored and labelled by language models and reviewed by
no radiologist (`training/corpus/README.md`). They say nothing certain about a hospital's own reports. The published figures are
of other, real reports that are not public: they show a level and are no comparison. No public real text with brain-tumour
episodes and labels exists. Real public text is measured by `radtag eval benchmark`, speed by `make bench`.

This page is written by `make results` from `docs/results.json`, which holds every figure, interval, n and fingerprint. Do not
edit it."""

_READING = """## How to read the tables
- Percent; in brackets the 95 % interval: {n_resamples} bootstrap resamples in which patients are drawn anew (seed {seed}).
  Wilson's for reports with and without a negated finding, for relations out of the text, and for a proportion of 0 or 100 %.
- n is what a figure is out of in the gold; where confidence is measured, in what the judged system said.
- `published`: {published}. `careful rules`: a rule system on 60 chest CT and 65 brain MRI invented
  reports that were kept apart from this project: the line to beat. The other columns are systems of this program on the
  reports of the row.
- `published-rules`: keywords in one sentence, no negation. `rules`: our careful rules. `encoder`: stage 1 alone. `encoders`: both
  encoders and the rules, no language model. `llm`: stage 2 without stage 1. `two-stage`: the default, hints from stage 1 to
  stage 2.
- A goal is for the system that it names and is judged by the figure itself; "interval below it" ("above it") says that chance
  may have helped. A figure that a system cannot have prints –.
- Exact keys: exactly the gold's keys. F1 as published: harmonic mean of the means of each report's precision and recall. Pairs
  as published: for each subject over the reports whose gold has it, then the mean over subjects; in the second reading a
  subject that only the system has counts as wrong. Definitions: `eval/README.md`, `eval/metrics.py`.
- Reports with a negated finding are found by reading the text with rules, not by annotation.
- Drawing anew inflates a calibration error: its interval may lie above the figure itself."""


def results_markdown(found: dict[str, Any]) -> str:
    """The whole page."""
    parts = [_HEAD, _READING.format(published=PUBLISHED, **found["bootstrap"])]
    parts += ["## Goals of stage 1 alone", *_goal_tables(found, STAGE_1_TABLES)]
    parts += ["## Goals of both stages", *_goal_tables(found, STAGE_2_TABLES)]
    if JUDGED_TOGETHER in found["systems"]:
        parts += [_comparisons(found, task) for task in found["tasks"]]
    parts += [_negation(found), _values_out_of_the_text(found)]
    parts += _goal_tables(found, TRUST_TABLES)
    parts.append(_provenance(found))
    return "\n\n".join(parts) + "\n"


def _goal_tables(found: dict[str, Any], tables: Sequence[GoalTable]) -> list[str]:
    return [_goal_table(found, table) for table in tables if table.task in found["tasks"]]


def _goal_table(found: dict[str, Any], table: GoalTable) -> str:
    header = ("figure", SETS_HEADER, "n", "published", "careful rules", *found["systems"], "goal")
    rows = []
    for line in table.lines:
        for name, some in found["tasks"][table.task]["report_sets"].items():
            figures = [_figure(some, system, line.figure) for system in found["systems"]]
            rows.append(
                (
                    line.label,
                    name,
                    _count(some, table, line),
                    _known(line.published),
                    _known(line.careful),
                    *map(_figure_text, figures),
                    _goal(some, table, line),
                )
            )
    return _section(found, table.title, table.task, header, rows, n_text=2)


def _goal(some: dict[str, Any], table: GoalTable, line: GoalLine) -> str:
    """`encoder ≥ 99: reached`. Judged by the unrounded figure."""
    if line.goal is None:
        return ""
    asked = f"{table.judged} {'≤' if line.at_most else '≥'} {line.goal:g}"
    figure = _figure(some, table.judged, line.figure)
    value = _number(figure.get("value"))
    if math.isnan(value):
        return f"{asked}: –"
    goal = line.goal / 100
    if value > goal if line.at_most else value < goal:
        return f"{asked}: **not reached**"
    interval = _shown_interval(figure)
    beyond = interval.high > goal if line.at_most else interval.low < goal
    return f"{asked}: reached" + (f", interval {'above' if line.at_most else 'below'} it" if beyond else "")


def _count(some: dict[str, Any], table: GoalTable, line: GoalLine) -> str:
    if line.count is not None:
        return f"{some['counts'][line.count]} {_UNITS.get(line.count, line.count)}"
    figure = _figure(some, table.judged, line.figure)
    return f"{figure['n']} {_UNITS.get(figure['unit'], figure['unit'])}" if figure else "–"


_UNITS = {
    "values": "subjects in reports",
    "entities": "keys",
    "reports with a key": "reports",
    "reports without a key": "reports without a key",
    "reports with a negated finding": "reports",
}


def _comparisons(found: dict[str, Any], task: str) -> str:
    header = (
        "exact", SETS_HEADER, "against", "n", "only two-stage right", "only the other right", "McNemar p (Holm)",
        "F1 a report: two-stage less the other", "95 % interval", "goal",
    )  # fmt: skip
    rows = []
    for what in ("keys", "pairs"):
        for name, some in found["tasks"][task]["report_sets"].items():
            for comparison in some["comparisons"]:
                if comparison["what"] == what and JUDGED_TOGETHER in (comparison["first"], comparison["second"]):
                    rows.append((what, name, *_comparison_cells(comparison)))
    note = (
        "McNemar's test on exactly right reports (exact below 25 discordant ones), corrected by Holm over all comparisons of the "
        "same reports; the difference of each report's F1, in points, with its paired bootstrap interval by patient. Against "
        "`llm` it is what stage 1 adds."
    )
    return _section(found, f"{_label(task)}: is two-stage better, beyond chance?", task, header, rows, n_text=3, note=note)


def _comparison_cells(comparison: dict[str, Any]) -> tuple[str, ...]:
    turned = comparison["second"] == JUDGED_TOGETHER
    other = comparison["first"] if turned else comparison["second"]
    only_ours, only_other = comparison["mcnemar"]["n_only_first"], comparison["mcnemar"]["n_only_second"]
    difference, interval = _number(comparison["f1_difference"]), _interval(comparison["f1_interval"])
    if turned:
        only_ours, only_other = only_other, only_ours
        difference, interval = -difference, Interval(-interval.high, -interval.low)
    ends = "–" if math.isnan(interval.low) else f"{signed_points(interval.low)} to {signed_points(interval.high)}"
    goal = ""
    if other == RIVAL:
        verdict = "–" if math.isnan(interval.low) else "reached" if interval.low > 0 else "**not reached**"
        goal = f"better, interval without 0: {verdict}"
    p_holm = bare_p(_number(comparison["p_holm"]))
    return (other, str(comparison["n_reports"]), str(only_ours), str(only_other), p_holm, signed_points(difference), ends, goal)


def _negation(found: dict[str, Any]) -> str:
    header = (
        "system", SETS_HEADER, "n with", "right with", "n without", "right without", "p (chi-square)", "p (Fisher)", "published",
        "goal",
    )  # fmt: skip
    blocks = []
    for task, measured in found["tasks"].items():
        rows = [
            (system, name, *_negation_cells(some, system, PUBLISHED_NEGATION.get(task)))
            for system in found["systems"]
            for name, some in measured["report_sets"].items()
        ]
        note = (
            "Exact keys of reports whose text negates a finding against those of the others. Where an expected count is below 5 "
            "(marked *), Fisher's p is the one to read."
        )
        blocks.append(_section(found, f"{_label(task)}: do negated findings mislead it?", task, header, rows, n_text=2, note=note))
    return "\n\n".join(blocks)


def _negation_cells(some: dict[str, Any], system: str, published: tuple[float, float] | None) -> tuple[str, ...]:
    test = some["systems"][system]["negation"]
    with_negation, without = _figure(some, system, "negated_accuracy"), _figure(some, system, "unnegated_accuracy")
    is_judged = system == JUDGED_TOGETHER
    known = f"{published[0]:.1f} / {published[1]:.1f}" if published is not None and is_judged else "–"
    if test is None:
        return ("–",) * 6 + (known, "")
    p, fisher = _number(test["p_value"]), _number(test["fisher_p_value"])
    goal = ""
    if is_judged:
        values = [_number(with_negation["value"]), _number(without["value"])]
        decisive = fisher if test["small"] else p
        fine = all(value >= NEGATED_AT_LEAST / 100 for value in values) and not decisive < SIGNIFICANT_BELOW
        unknown = any(map(math.isnan, values))
        goal = f"both ≥ {NEGATED_AT_LEAST:g}, no difference: {'–' if unknown else 'reached' if fine else '**not reached**'}"
    marked = f"{bare_p(p)}{'*' if test['small'] and not math.isnan(p) else ''}"
    counts = (str(test["n_reports"][0]), _figure_text(with_negation), str(test["n_reports"][1]), _figure_text(without))
    return (*counts, marked, bare_p(fisher), known, goal)


def _values_out_of_the_text(found: dict[str, Any]) -> str:
    header = ("task", SETS_HEADER, *found["systems"], "goal")
    rows = []
    for task, measured in found["tasks"].items():
        for name, some in measured["report_sets"].items():
            figures = {system: _figure(some, system, "values_out_of_text") for system in found["systems"]}
            rows.append(
                (_label(task), name, *map(_out_of, figures.values()), _none_out_of_the_text(figures.get(JUDGED_TOGETHER, {})))
            )
    note = "Of the relations that a system states: those whose value stands nowhere in the text and is not implied by the subject."
    title = "Relations whose value is not in the text"
    return _section(found, title, "TASK", header, rows, n_text=2, note=note)


def _out_of(figure: dict[str, Any]) -> str:
    return f"{_n_out(figure)} of {figure['n']}{_ends(figure)}" if figure else "–"


def _none_out_of_the_text(figure: dict[str, Any]) -> str:
    verdict = "–" if not figure or not figure["n"] else "**not reached**" if _n_out(figure) else "reached"
    return f"{JUDGED_TOGETHER} 0: {verdict}"


def _n_out(figure: dict[str, Any]) -> int:
    value = _number(figure["value"])
    return 0 if math.isnan(value) else round(value * figure["n"])


def _provenance(found: dict[str, Any]) -> str:
    rows, gold_rows = [], []
    for task, measured in found["tasks"].items():
        for name, some in measured["report_sets"].items():
            gold = some["gold"]
            n_keys = f"{some['counts']['keys']} keys, {some['counts']['pairs']} pairs"
            gold_rows.append(
                (_label(task), name, str(gold["n_reports"]), str(gold["n_patients"]), n_keys, f"`{gold['sha256'][:16]}`")
            )
            for system in found["systems"]:
                one = some["systems"][system]
                rows.append((_label(task), name, system, f"`{one['fingerprint'] or '–'}`", str(one["n_failed"])))
    gold_header = ("task", SETS_HEADER, "reports", "patients", "gold", "sha256 of the gold")
    header = ("task", SETS_HEADER, "system", "fingerprint", "rows without an answer")
    notes = [
        f"- {_label(task)}, {name}: {note}"
        for task, measured in found["tasks"].items()
        for name, some in measured["report_sets"].items()
        for note in some["notes"]
        if "states no relations" not in note
    ]
    parts = ["## What was measured", f"radtag {found['radtag']}.", _table(gold_header, gold_rows, 2), _table(header, rows, 4)]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def _section(
    found: dict[str, Any],
    title: str,
    task: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    n_text: int,
    note: str = "",
) -> str:
    split = found["splits"][0]
    alone = f"radtag eval run training/corpus/{task}/{split}.jsonl --task {task} --systems {','.join(found['systems'])} --out DIR"
    command = f"Invented reports. All rows: `make results`; `{split}` alone, with the errors in the text: `{alone}`"
    return "\n\n".join([f"### {title}", *([note] if note else []), _table(header, rows, n_text), command])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], n_text: int) -> str:
    rule = ["---" if place < n_text else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _figure(some: dict[str, Any], system: str, name: str) -> dict[str, Any]:
    """Empty where the system was not measured or cannot have the figure."""
    figure: dict[str, Any] = some["systems"].get(system, {}).get("figures", {}).get(name, {})
    return figure


def _figure_text(figure: dict[str, Any]) -> str:
    value = _number(figure.get("value"))
    return "–" if math.isnan(value) else f"{percent(value)}{_ends(figure)}"


def _ends(figure: dict[str, Any]) -> str:
    interval = _shown_interval(figure)
    return "" if math.isnan(interval.low) else f" ({percent_interval(interval)})"


def _shown_interval(figure: dict[str, Any]) -> Interval:
    """Wilson's for a proportion of 0 or 100 %, which no resample can vary."""
    wilson = figure.get("wilson")
    return _interval(wilson if wilson is not None and figure["value"] in (0, 1) else figure["interval"])


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(_number(found["low"]), _number(found["high"]))


def _number(found: float | None) -> float:
    return math.nan if found is None else found


def _known(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _label(task: str) -> str:
    return TASK_LABELS.get(task, task)

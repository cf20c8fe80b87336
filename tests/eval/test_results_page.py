"""`radtag eval results`: the page says what its JSON says, and the JSON what hand counts say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from configs.contracts import EntityFinding, Relation, Span, TaggedReport
from configs.schema import load_task
from eval.calibration import Decision, reliability, triage
from eval.cli import app
from eval.goals import STAGE_1_TABLES, STAGE_2_TABLES, TRUST_TABLES
from eval.gold import Answer, GoldReport, Labels, gold_sha256, read_gold_reports
from eval.page_figures import calibration_error_resampled, gold_counts, page_figures, triage_resampled
from eval.results import Results
from eval.results_markdown import results_markdown
from eval.results_page import read_results
from eval.run import evaluate
from eval.score import HEADLINES
from eval.systems import SystemAnswers
from pipeline.records import record_line

ROOT = Path(__file__).parents[2]
PAGE, FIGURES, CORPUS = ROOT / "docs" / "RESULTS.md", ROOT / "docs" / "results.json", ROOT / "training" / "corpus"
TASK = load_task("chest_ct")
SPLITS = ["test", "test_hard", "test_fresh", "test_sealed"]
SYSTEMS = ["published-rules", "rules", "encoder", "encoders", "llm", "two-stage"]
needs_page = pytest.mark.skipif(not PAGE.exists() and not FIGURES.exists(), reason="docs/RESULTS.md and its JSON: not made yet")

GOLD = {
    "r0": {"nodule": {"rul"}, "pleural_effusion": {"pleural"}},
    "r1": {"mass": {"lll"}},
    "r2": {},
    "r3": {"nodule": {"rml"}, "ggo": {"rul", "lul"}},
}
TEXTS = {
    "r0": "RUL nodule. Pleural effusion.",
    "r1": "LLL mass. No nodule.",
    "r2": "No effusion.",
    "r3": "GGO in RUL, LUL, RML nodule.",
}


def gold_reports() -> list[GoldReport]:
    return [
        GoldReport(Labels(name, {key: frozenset(values) for key, values in labels.items()}), TEXTS[name], f"p{name}")
        for name, labels in GOLD.items()
    ]


def record(
    report_id: str,
    relations: Sequence[tuple[str, str, float | None, Span | None]],
    *,
    hints: tuple[str, ...] | None,
    confidence: float | None = None,
    keys: Sequence[str] = (),
    status: str = "ok",
) -> TaggedReport:
    """Present keys are those of the relations and `keys`; `confidence` is theirs, absent ones have 1 minus it."""
    if status in ("failed", "rejected"):
        return TaggedReport(report_id, TASK.name, status, None, None, hints, "no answer")  # type: ignore[arg-type]
    present = {subject for subject, *_ in relations} | set(keys)
    entities = tuple(
        EntityFinding(key, key in present, None if confidence is None else confidence if key in present else 1 - confidence)
        for key in TASK.keys
    )
    found = tuple(Relation(subject, value, sure, Span(0, 1), span) for subject, value, sure, span in relations)
    return TaggedReport(report_id, TASK.name, "ok" if present else "no_findings", entities, found, hints, None)


SEEN = Span(0, 3)
RECORDS = [
    record(
        "r0",
        [("nodule", "rul", 0.9, SEEN), ("pleural_effusion", "pleural", 0.9, None)],
        hints=("nodule", "pleural_effusion"),
        confidence=0.9,
    ),
    record("r1", [("mass", "rll", 0.6, None)], hints=("nodule",), confidence=0.6),
    record("r2", [], hints=(), confidence=0.8),
    record("r3", [], hints=None, status="failed"),
]


def answer(found: TaggedReport) -> Answer:
    if found.entities is None or found.relations is None:
        return Answer(None, found)
    values: dict[str, set[str]] = {entity.key: set() for entity in found.entities if entity.present}
    for relation in found.relations:
        values[relation.subject].add(relation.value)
    return Answer(Labels(found.report_id, {key: frozenset(some) for key, some in values.items()}), found)


def measured(records: Sequence[TaggedReport] = RECORDS, *, states_relations: bool = True) -> Results:
    answers = SystemAnswers("ours", tuple(map(answer, records)), states_relations=states_relations)
    return evaluate(TASK, gold_reports(), [answers], gold_name="gold")


def figures(results: Results) -> dict[str, Any]:
    return dict(page_figures(results, results.systems[0]))


# The committed page


@needs_page
def test_the_page_is_what_its_json_renders_to() -> None:
    assert PAGE.read_text(encoding="utf-8") == results_markdown(read_results(FIGURES)), "run 'make results'"


@needs_page
def test_the_page_is_of_the_shipped_corpus_and_of_every_system() -> None:
    found = read_results(FIGURES)
    assert found["splits"] == SPLITS
    assert found["systems"] == SYSTEMS
    assert list(found["tasks"]) == ["chest_ct", "brain_mri"]
    for name, task in found["tasks"].items():
        assert list(task["report_sets"]) == [*SPLITS, " + ".join(SPLITS)]
        for split in found["splits"]:
            gold = read_gold_reports(CORPUS / name / f"{split}.jsonl", load_task(name))
            assert task["report_sets"][split]["gold"]["sha256"] == gold_sha256(gold), f"{name}/{split}: run 'make results'"


# What the figures are


def test_hint_recall_counts_the_hints_and_not_the_answer() -> None:
    found = figures(measured())
    assert found["hint_recall"].value == pytest.approx((1 + 0 + 0) / 3)  # r0 both, r1 the wrong key, r3 failed; r2 has no key
    assert found["hint_recall"].n == 3
    assert (found["hint_micro_recall"].value, found["hint_micro_recall"].n) == (pytest.approx(2 / 5), 5)


def test_a_system_without_hints_has_no_hint_recall_instead_of_zero() -> None:
    bare = [record(report, [("nodule", "rul", None, SEEN)], hints=None) for report in GOLD]
    assert "hint_recall" not in figures(measured(bare))


def test_a_value_without_its_place_in_the_text_is_counted_unless_the_subject_implies_it() -> None:
    found = figures(measured())["values_out_of_text"]
    assert found.n == 3
    assert found.value == pytest.approx(1 / 3)  # the mass's location; the effusion's is implied
    assert "values_out_of_text" not in figures(measured(states_relations=False))


def test_negated_reports_are_counted_apart() -> None:
    found = figures(measured())
    assert (found["negated_accuracy"].value, found["negated_accuracy"].n) == (1.0, 2)  # r1 and r2 deny something
    assert (found["unnegated_accuracy"].value, found["unnegated_accuracy"].n) == (0.5, 2)  # r0 right, r3 failed


def test_what_figures_are_out_of() -> None:
    assert gold_counts(measured()) == {
        "reports": 4,
        "reports with a key": 3,
        "reports without a key": 1,
        "reports with a negated finding": 2,
        "keys": 5,
        "values": 4,  # nodule twice, mass, ggo: an effusion has no choice of values
        "pairs": 5,
    }


def test_trust_figures_are_those_of_the_evaluation() -> None:
    invented = record("r0", [("nodule", "rul", 0.9, SEEN)], hints=(), keys=("ggo", "pleural_effusion"), confidence=0.9)
    results = measured([invented, *RECORDS[1:]])
    found, trust = figures(results), results.systems[0].trust
    assert trust["entities"].triage.n_wrong == 1
    for kind in ("reports", "entities", "relations"):
        assert found[f"error_surest_{kind}"].value == pytest.approx(trust[kind].triage.error_rest)
        assert found[f"errors_found_{kind}"].value == pytest.approx(trust[kind].triage.errors_found)
    assert found["calibration_error_entities"].value == pytest.approx(trust["entities"].reliability.ece)
    assert "calibration_error_reports" not in found


def test_a_system_without_confidence_has_no_trust_figure() -> None:
    bare = [record(report, [("nodule", "rul", None, SEEN)], hints=None) for report in GOLD]
    assert not [name for name in figures(measured(bare)) if name.startswith(("error", "calibration"))]


DECISIONS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.05, 0.5, 0.51, 0.9, 1.0]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(DECISIONS, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_resample_is_worth_the_reports_written_out_as_often_as_drawn(
    rows: list[tuple[int, float, bool, bool]], drawn: list[int]
) -> None:
    decisions = [(place, Decision(p, there, max(p, 1 - p), wrong)) for place, p, there, wrong in rows]
    written_out = [decision for place, decision in decisions for _ in range(drawn[place])]
    weights = np.array([drawn], dtype=np.float64)
    expected = triage(written_out)
    (error_surest,), (errors_found,) = triage_resampled(decisions, weights)
    assert error_surest == pytest.approx(expected.error_rest, nan_ok=True)
    assert errors_found == pytest.approx(expected.errors_found, nan_ok=True)
    (error,) = calibration_error_resampled(decisions, weights)
    assert error == pytest.approx(reliability(written_out).ece, nan_ok=True)


def test_every_goal_is_of_a_figure_that_exists() -> None:
    known = {item.name for item in HEADLINES} | set(figures(measured()))
    lines = [line for table in (*STAGE_1_TABLES, *STAGE_2_TABLES, *TRUST_TABLES) for line in table.lines]
    assert [line.figure for line in lines if line.figure not in known] == []
    counts = gold_counts(measured())
    assert [line.count for line in lines if line.count is not None and line.count not in counts] == []


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two small splits: two systems that tag, and records under the names of the judged ones."""
    folder = tmp_path_factory.mktemp("page")
    corpus = folder / "corpus" / "chest_ct"
    corpus.mkdir(parents=True)
    lines = (CORPUS / "chest_ct" / "dev.jsonl").read_text("utf-8").splitlines()
    for split, some in (("one", lines[:8]), ("two", lines[8:14])):
        (corpus / f"{split}.jsonl").write_text("".join(line + "\n" for line in some), encoding="utf-8")
    rows = [json.loads(line) for line in lines[:14]]
    perfect = [
        record(
            row["report_id"],
            [(key, value, 0.9, SEEN) for key, values in row["labels"].items() for value in values],
            hints=tuple(row["labels"]),
            keys=row["labels"],
            confidence=0.9,
        )
        for row in rows
    ]
    write_records(folder / "two-stage.jsonl", perfect)
    write_records(folder / "encoder.jsonl", [record(row["report_id"], [], hints=(), confidence=0.9) for row in rows])
    result = CliRunner().invoke(app, arguments(folder))
    assert result.exit_code == 0, result.stderr
    return folder


def write_records(path: Path, records: Sequence[TaggedReport]) -> None:
    path.write_text("".join(record_line(one) + "\n" for one in records), encoding="utf-8")


def arguments(folder: Path, *more: str, splits: str = "one,two", tasks: str = "chest_ct") -> list[str]:
    systems = f"published-rules,rules,encoder={folder / 'encoder.jsonl'},two-stage={folder / 'two-stage.jsonl'}"
    files = [
        "--out",
        str(folder / "docs" / "R.md"),
        "--json",
        str(folder / "docs" / "r.json"),
        "--records",
        str(folder / "records"),
    ]
    where = ["--corpus", str(folder / "corpus"), "--splits", splits, "--tasks", tasks]
    return ["results", *files, *where, "--systems", systems, "--resamples", "100", *more]


def found_in(folder: Path) -> dict[str, Any]:
    return read_results(folder / "docs" / "r.json")


def rows_of(page: str, title: str) -> list[list[str]]:
    section = page.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_command_measures_each_split_and_all_of_them_together(finished: Path) -> None:
    sets = found_in(finished)["tasks"]["chest_ct"]["report_sets"]
    assert {name: some["gold"]["n_reports"] for name, some in sets.items()} == {"one": 8, "two": 6, "one + two": 14}
    for system in ("published-rules", "rules", "encoder", "two-stage"):
        exact = [sets[name]["systems"][system]["keys"]["accuracy"] * sets[name]["gold"]["n_reports"] for name in sets]
        assert exact[0] + exact[1] == pytest.approx(exact[2], abs=1e-4)
    assert sets["one + two"]["systems"]["two-stage"]["figures"]["keys_accuracy"]["value"] == 1
    assert sets["one"]["systems"]["rules"]["fingerprint"] == sets["one + two"]["systems"]["rules"]["fingerprint"]


def test_splits_together_tag_no_report_a_second_time(finished: Path) -> None:
    runs = [path.name for path in (finished / "records" / "chest_ct" / "records").iterdir() if path.is_dir()]
    assert len(runs) == 4  # two systems that tag, two splits


def test_the_page_written_is_the_json_rendered(finished: Path) -> None:
    assert (finished / "docs" / "R.md").read_text("utf-8") == results_markdown(found_in(finished))
    text = (finished / "docs" / "r.json").read_text("utf-8")
    assert "NaN" not in text
    assert str(finished) not in text, "the page names no path of this machine"


def test_every_table_says_that_its_reports_are_invented(finished: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", (finished / "docs" / "R.md").read_text("utf-8"), re.MULTILINE)
    assert len(tables) >= 8
    assert [table.splitlines()[0] for table in tables if "invented" not in table.splitlines()[0]] == []
    widths = [{line.count("|") for line in table.splitlines()} for table in tables]
    assert all(len(width) == 1 for width in widths)


def test_goals_are_judged_by_the_system_that_they_name(finished: Path) -> None:
    page = (finished / "docs" / "R.md").read_text("utf-8")
    alone = rows_of(page, "Chest CT: keys by stage 1 alone")
    assert alone[0][0] == "hint recall as published"
    assert alone[0][-1] == "encoder ≥ 99: **not reached**"
    together = [row for row in rows_of(page, "Chest CT: keys by both stages") if row[0] == "exact keys"]
    assert [row[-1] for row in together] == ["two-stage ≥ 93: reached, interval below it"] * 3  # Wilson's of 14 of 14 begins at 78
    assert together[2][1:5] == ["one + two", "14 reports", "73.9", "86.7"]


def test_an_undefined_figure_prints_a_dash(finished: Path) -> None:
    alone = rows_of((finished / "docs" / "R.md").read_text("utf-8"), "Chest CT: keys by stage 1 alone")
    assert alone[0][5:7] == ["–", "–"]  # rules give no hints
    assert "nan" not in (finished / "docs" / "R.md").read_text("utf-8").lower().replace("another", "")


def test_the_comparison_stands_from_the_side_of_the_two_stages(finished: Path) -> None:
    found = found_in(finished)
    some = found["tasks"]["chest_ct"]["report_sets"]["one + two"]
    (stored,) = [c for c in some["comparisons"] if (c["first"], c["second"], c["what"]) == ("published-rules", "two-stage", "keys")]
    rows = rows_of(results_markdown(found), "Chest CT: is two-stage better, beyond chance?")
    (row,) = [row for row in rows if row[:3] == ["keys", "one + two", "published-rules"]]
    assert stored["f1_difference"] < 0
    assert row[4:6] == [str(stored["mcnemar"]["n_only_second"]), str(stored["mcnemar"]["n_only_first"])]
    assert row[7] == f"+{-100 * stored['f1_difference']:.1f}"
    low, high = (float(end.replace("−", "-")) for end in row[8].split(" to "))
    assert low == pytest.approx(-100 * stored["f1_interval"]["high"], abs=0.06)
    assert high == pytest.approx(-100 * stored["f1_interval"]["low"], abs=0.06)
    assert row[-1] == ""
    against_rules = [row for row in rows if row[2] == "rules"]
    assert all(row[-1].startswith("better, interval without 0: ") for row in against_rules)


def judged(value: float | None, low: float, high: float) -> str:
    """The goal cell of the surest 80 % of reports (at most 2 %)."""
    figure = {"value": value, "interval": {"low": low, "high": high}, "n": 50, "unit": "reports"}
    negation = {"n_right": [9, 9], "n_reports": [10, 10], "p_value": 0.5, "fisher_p_value": 0.5, "small": False}
    share = {"value": 0.9, "interval": {"low": 0.8, "high": 1.0}, "n": 10, "unit": "reports"}
    system = {
        "figures": {"error_surest_reports": figure, "negated_accuracy": share, "unnegated_accuracy": share},
        "negation": negation,
        "fingerprint": None,
        "n_failed": 0,
    }
    counts = gold_counts(measured())
    some = {
        "systems": {"two-stage": system},
        "counts": counts,
        "comparisons": [],
        "notes": [],
        "gold": {"n_reports": 50, "n_patients": 50, "sha256": "0" * 64},
    }
    found = {
        "tasks": {"chest_ct": {"report_sets": {"test": some}}},
        "systems": ["two-stage"],
        "splits": ["test"],
        "radtag": "0",
        "bootstrap": {"n_resamples": 1000, "seed": 1},
    }
    return rows_of(results_markdown(found), "Chest CT: can its confidence be trusted?")[0][-1]


def test_a_goal_from_above_is_judged_from_above() -> None:
    assert judged(0.01, 0.0, 0.015) == "two-stage ≤ 2: reached"
    assert judged(0.02, 0.0, 0.05) == "two-stage ≤ 2: reached, interval above it"
    assert judged(0.0201, 0.0, 0.05) == "two-stage ≤ 2: **not reached**"
    assert judged(None, math.nan, math.nan) == "two-stage ≤ 2: –"


def test_render_only_writes_the_page_anew_and_measures_nothing(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "R.md"
    result = CliRunner().invoke(app, ["results", "--render-only", "--out", str(page), "--json", str(finished / "docs" / "r.json")])
    assert result.exit_code == 0, result.stderr
    assert page.read_text("utf-8") == (finished / "docs" / "R.md").read_text("utf-8")


def test_failed_rows_end_the_command_with_one_and_the_page_says_how_many(finished: Path, tmp_path: Path) -> None:
    for name in ("corpus", "encoder.jsonl"):
        (tmp_path / name).symlink_to(finished / name)
    ids = [json.loads(line)["report_id"] for line in (finished / "two-stage.jsonl").read_text("utf-8").splitlines()]
    write_records(tmp_path / "two-stage.jsonl", [record(name, [], hints=None, status="failed") for name in ids])
    result = CliRunner().invoke(app, arguments(tmp_path, splits="two"))
    assert result.exit_code == 1
    assert "6 rows have no answer" in result.stderr
    page = (tmp_path / "docs" / "R.md").read_text("utf-8")
    assert "two-stage: 6 of 6 reports have no answer" in page
    assert rows_of(page, "Relations whose value is not in the text")[0][-1] == "two-stage 0: –"


def test_what_cannot_be_measured_ends_with_one_line_and_exit_two(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    twice = tmp_path / "corpus" / "chest_ct"
    twice.mkdir(parents=True)
    for split in ("one", "two"):
        (twice / f"{split}.jsonl").symlink_to(finished / "corpus" / "chest_ct" / "one.jsonl")
    cases = (
        (arguments(finished, splits="one,three"), "three.jsonl"),
        (arguments(finished, splits="one,one"), "--splits 'one,one' holds an empty or repeated name"),
        (arguments(finished, tasks="chest"), "chest"),
        ([*arguments(finished), "--corpus", str(tmp_path / "corpus")], "splits share no report"),
        (["results", "--render-only", "--json", str(tmp_path / "none.json")], "none.json: file does not exist"),
        (["results", "--render-only", "--json", str(tmp_path / "old.json")], 'old.json: has no "radtag_results": 1'),
        (["results", "--render-only", "--json", str(tmp_path / "broken.json")], "broken.json: is no JSON"),
    )
    for given_arguments, problem in cases:
        result = CliRunner().invoke(app, given_arguments)
        assert result.exit_code == 2, problem
        assert problem in result.stderr
        assert len([line for line in result.stderr.splitlines() if "Error" in line or line.startswith("Traceback")]) == 0

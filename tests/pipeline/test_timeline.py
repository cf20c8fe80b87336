"""Timelines: filters, changes, days, and what is drawn. Reports and patients are invented."""

from __future__ import annotations

import csv
import json
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from configs.contracts import EntityFinding, Relation, Report, TaggedReport
from configs.schema import load_task
from pipeline.cli import app
from pipeline.records import record_line
from pipeline.timeline import Patient, Timeline, TimelineError, Visit, course_step, days_of, timeline
from pipeline.timeline_drawing import CELL_WIDTH, STRIP_WIDTH, Style, _without_overlap, axis_of, sankey, strip
from pipeline.timeline_files import as_object, page, write_timeline

TASK = load_task("brain_mri")
STEP = course_step(TASK)
SVG = "{http://www.w3.org/2000/svg}"
P, S, I = ["progression"], ["stable"], ["improvement"]  # noqa: E741 - the letters of the cells


def record(report_id: str, patient: str | None, day: str | None, labels: dict[str, list[str]] | None) -> TaggedReport:
    """labels None: a failed row."""
    if labels is None:
        return TaggedReport(report_id, "brain_mri", "failed", None, None, None, "no answer", {"fingerprint": "f"}, patient, day)
    entities = tuple(EntityFinding(key, key in labels) for key in TASK.keys)
    relations = tuple(Relation(subject, value) for subject, values in labels.items() for value in values)
    status = "ok" if labels else "no_findings"
    return TaggedReport(report_id, "brain_mri", status, entities, relations, None, None, {"fingerprint": "f"}, patient, day)


def sequence(patient: str, *states: dict[str, list[str]] | None, every: int = 30) -> list[TaggedReport]:
    """Reports of one patient, `every` days apart."""
    start = date(2020, 1, 1)
    return [
        record(f"{patient}-{n}", patient, (start + timedelta(days=n * every)).isoformat(), labels)
        for n, labels in enumerate(states)
    ]


def made(*sequences: list[TaggedReport], **options: Any) -> Timeline:
    rows = [record for some in sequences for record in some]
    return timeline(TASK, STEP, [(f"records.jsonl:{n}", row) for n, row in enumerate(rows, 1)], **options)


GLIOMA = {
    "P": {"glioma": P},
    "S": {"glioma": S},
    "I": {"glioma": I},
    "-": {"glioma": []},
    "0": {},
    "?": None,
    "PS": {"glioma": P + S},
}


@pytest.mark.parametrize(
    ("states", "removed_by", "path"),
    [
        ("- S P", None, "stable progression"),
        ("S S P P", None, "stable progression"),
        ("S 0 P", None, "stable progression"),
        ("S - S", None, "stable"),
        ("P S P S P", None, "progression stable progression stable progression"),
        ("P S P S P S", "changes", None),
        ("S P", "reports", None),
        ("S P ?", "read", None),
        ("0 0 0", "diagnosis", None),
        ("S PS P", "one_episode", None),
        ("- - -", "episode", None),
    ],
)
def test_a_patient_is_counted_or_removed_by_the_first_filter_that_fits(
    states: str, removed_by: str | None, path: str | None
) -> None:
    found = made(sequence("a", *(GLIOMA[state] for state in states.split())))
    assert [" ".join(course.path) for course in found.courses] == ([] if path is None else [path])
    assert [name for _, name in found.removed] == ([] if removed_by is None else [removed_by])
    assert sum(each.n_removed for each in found.filters) == len(found.removed)


def test_a_patient_with_two_followed_diagnoses_is_removed_and_one_with_another_disease_beside_is_not() -> None:
    two = sequence("a", {"glioma": S}, {"metastasis": P}, {"glioma": P})
    beside = sequence("b", {"glioma": S}, {"glioma": P, "stroke_infarction": []}, {"stroke_infarction": []})
    found = made(two, beside)
    assert [name for _, name in found.removed] == ["one_diagnosis"]
    assert [course.path for course in found.courses] == [("stable", "progression")]


def test_reports_of_one_day_that_disagree_have_no_order_and_are_not_guessed() -> None:
    rows = sequence("a", GLIOMA["S"], GLIOMA["P"], GLIOMA["I"], every=0)
    assert [name for _, name in made(rows).removed] == ["order"]
    assert len(made(sequence("a", GLIOMA["S"], GLIOMA["S"], GLIOMA["S"], every=0)).courses) == 1


def test_a_failed_report_is_unknown_and_never_a_state_nor_a_finding_that_is_absent() -> None:
    found = made(sequence("a", GLIOMA["S"], None, GLIOMA["P"]))
    assert found.courses == ()
    assert found.changes() == []
    (patient, _), *_ = found.removed
    drawn = strip(patient, "glioma", axis_of([patient]), Style.of(TASK, STEP.values))
    titles = [node.text or "" for node in ElementTree.fromstring(drawn).iter("title")]
    assert [title.split(" · ")[2] for title in titles] == ["stable", "unknown (failed or rejected)", "progression"]


def test_changes_and_days_equal_a_hand_made_table() -> None:
    found = made(
        sequence("a", GLIOMA["-"], GLIOMA["S"], GLIOMA["P"], every=100),
        sequence("b", GLIOMA["S"], GLIOMA["S"], GLIOMA["-"], GLIOMA["P"], every=10),
        sequence("c", {"lymphoma": P}, {"lymphoma": I}, {"lymphoma": I}, every=7),
    )
    assert [(c.patient_id, c.subject, c.before, c.after, c.days) for c in found.changes()] == [
        ("a", "glioma", "stable", "progression", 100),
        ("b", "glioma", "stable", "progression", 20),
        ("c", "lymphoma", "progression", "improvement", 7),
    ]
    assert found.n_repeats() == 2
    intervals = found.intervals()
    assert (intervals["glioma"].n, intervals["glioma"].median) == (5, 10.0)
    assert (intervals["all"].n, intervals["all"].median, intervals["all"].q1, intervals["all"].q3) == (7, 10.0, 8.5, 55.0)
    assert intervals["metastasis"].n == 0
    assert math.isnan(intervals["metastasis"].median)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=1, max_size=30))
def test_quartiles_are_those_of_numpy(gaps: list[int]) -> None:
    import numpy

    found = days_of(gaps)
    assert [found.q1, found.median, found.q3] == pytest.approx(numpy.percentile(gaps, [25, 50, 75]).tolist())


def test_records_without_patient_or_date_are_counted_with_the_place_of_the_first() -> None:
    whole = sequence("a", GLIOMA["S"], GLIOMA["S"], GLIOMA["P"])
    odd = [record("x", None, "2020-01-01", {}), record("y", "b", None, {}), record("z", "c", "31.12.2020", {})]
    found = made(whole, odd)
    p = found.problems
    assert (p.n_without_patient, p.first_without_patient) == (1, "records.jsonl:4")
    assert (p.n_without_date, p.first_without_date) == (1, "records.jsonl:5")
    assert (p.n_unreadable_date, p.first_unreadable_date) == (1, "records.jsonl:6")
    assert sorted(name for _, name in found.removed) == ["dated", "dated"]
    assert len(found.courses) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no record was read"),
        ([record("x", None, "2020-01-01", {})], "r:1: no record has a patient id; tag with patient ids or give --reports INPUT"),
        ([record("x", "p", "1.2.2020", {})], "r:1: no record has a date that can be read; expected YYYY-MM-DD"),
        ([record("x", "p", "2020-01-01", {}), record("x", "p", "2020-01-02", {})], "r:2: report_id 'x' stands twice; first in r:1"),
        ([TaggedReport("x", "chest_ct", "no_findings", (), (), None, None)], "r:1: record is of task 'chest_ct'; 'brain_mri'"),
    ],
)
def test_records_of_which_no_timeline_can_be_made_are_refused_with_their_line(rows: list[TaggedReport], said: str) -> None:
    with pytest.raises(TimelineError) as error:
        timeline(TASK, STEP, [(f"r:{n}", row) for n, row in enumerate(rows, 1)])
    assert said in str(error.value)


def test_dates_are_read_in_the_format_that_is_given_and_in_no_other() -> None:
    rows = [record(f"a{n}", "a", f"0{n}.02.2020", GLIOMA[state]) for n, state in ((3, "P"), (1, "S"), (2, "S"))]
    found = made(rows, date_format="%d.%m.%Y")
    assert found.courses[0].path == ("stable", "progression")
    with pytest.raises(TimelineError, match=r"expected %Y/%m/%d"):
        made(rows, date_format="%Y/%m/%d")


def test_patient_and_date_come_from_the_reports_where_records_have_none_and_must_not_contradict() -> None:
    rows = [record(f"r{n}", None, None, GLIOMA[state]) for n, state in enumerate("SSP")]
    about = {f"r{n}": Report(f"r{n}", "", "p1", f"2020-0{n + 1}-01") for n in range(3)}
    assert made(rows, reports=about).courses[0].path == ("stable", "progression")
    with pytest.raises(TimelineError, match=r"records.jsonl:1: 'patient_id' of report 'r0' is another one in --reports"):
        made([record("r0", "p2", None, {})], reports=about)


def test_a_step_that_is_not_known_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(TimelineError, match="did you mean 'episodes'"):
        course_step(TASK, "episode")


def test_the_course_of_a_task_with_locations_is_its_own_step() -> None:
    assert course_step(load_task("chest_ct")).kind == "relation"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["glioma", "lymphoma"]), st.lists(st.sampled_from("PSI-"), min_size=3, max_size=5)),
        min_size=1,
        max_size=12,
    )
)
def test_the_sankey_is_well_formed_and_its_bands_hold_every_patient_once_a_column(patients: list[tuple[str, list[str]]]) -> None:
    found = made(
        *(
            sequence(f"p{n}", *({subject: GLIOMA[state]["glioma"]} for state in states))  # type: ignore[index]
            for n, (subject, states) in enumerate(patients)
        )
    )
    root = ElementTree.fromstring(sankey(found, Style.of(TASK, STEP.values)))
    n_by_column: dict[float, int] = defaultdict(int)
    for node in root.iter(f"{SVG}rect"):
        title = node.find(f"{SVG}title")
        if title is not None and title.text:
            n_by_column[float(node.attrib["x"])] += int(title.text.split()[-1])
    expected = [sum(len(course.path) >= column for course in found.courses) for column in range(6)]
    assert [n_by_column[x] for x in sorted(n_by_column)] == [n for n in expected if n]
    bands = [title.text or "" for path in root.iter(f"{SVG}path") if (title := path.find(f"{SVG}title")) is not None]
    n_bands = sum(int(text.rsplit(": ", 1)[1].split()[0]) for text in bands)
    assert n_bands == sum(len(course.path) for course in found.courses)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, STRIP_WIDTH - CELL_WIDTH), min_size=1, max_size=30).map(sorted))
def test_cells_of_a_strip_never_cover_each_other(places: list[float]) -> None:
    moved = _without_overlap(places)
    assert all(after - before >= CELL_WIDTH for before, after in pairwise(moved))
    assert moved[-1] <= STRIP_WIDTH - CELL_WIDTH


def test_a_patient_with_more_reports_than_fit_has_every_cell_on_the_strip() -> None:
    moved = _without_overlap([0.0] * 200)
    assert len(set(moved)) == 200
    assert (min(moved), max(moved)) == (0.0, pytest.approx(STRIP_WIDTH - CELL_WIDTH))


def test_names_of_patients_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    found = made(sequence("<script>alert(1)</script>&\"'", GLIOMA["S"], GLIOMA["S"], GLIOMA["P"]))
    text = page(found, Style.of(TASK, STEP.values), sankey(found, Style.of(TASK, STEP.values)), max_strips=5)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    found = made(sequence("a", GLIOMA["S"], GLIOMA["S"], GLIOMA["P"]), sequence("b", GLIOMA["S"], None, GLIOMA["P"]))
    text = write_timeline(found, tmp_path).read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not any(word in text for word in ("http:", "https:", "//cdn", "<script", "<link", "@import", "url("))


def test_nothing_left_is_said_and_drawn_and_undefined_figures_are_null(tmp_path: Path) -> None:
    found = made(sequence("a", GLIOMA["S"]))
    write_timeline(found, tmp_path)
    assert "No patient is left" in (tmp_path / "sankey.svg").read_text(encoding="utf-8")
    assert as_object(found)["interval_days"]["all"] == {"n": 0, "median": None, "q1": None, "q3": None}


def test_patients_without_any_date_leave_the_strip_empty() -> None:
    patient = Patient("a", (Visit("r", None, {}),))
    assert "<title>" not in strip(patient, "glioma", axis_of([patient]), Style.of(TASK, STEP.values))


# The corpus: labels as records, counted a second time here without the module.


def corpus_records(path: Path) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record_line(record(row["report_id"], row["patient_id"], row["date"], row["labels"])) for row in rows]


def by_hand(path: Path) -> dict[str, str]:
    """Patient to course, by the filters as the documentation says them."""
    patients: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        patients[row["patient_id"]].append(row)
    tumours = ("glioma", "lymphoma", "metastasis")
    courses = {}
    for name, rows in patients.items():
        rows.sort(key=lambda row: row["date"])
        tumour = {key for row in rows for key in row["labels"] if key in tumours}
        if len(rows) < 3 or len(tumour) != 1 or any(len(row["labels"].get(*tumour, [])) > 1 for row in rows):
            continue
        labels = [row["labels"][key][0] for row in rows for key in tumour if row["labels"].get(key)]
        path_of = [label for n, label in enumerate(labels) if n == 0 or label != labels[n - 1]]
        if 1 <= len(path_of) <= 5:
            courses[name] = " > ".join(path_of)
    return courses


def test_the_command_gives_the_courses_of_the_corpus(tmp_path: Path) -> None:
    corpus = Path(__file__).parents[2] / "training" / "corpus" / "brain_mri" / "train.jsonl"
    records = tmp_path / "records.jsonl"
    records.write_text("\n".join(corpus_records(corpus)) + "\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["timeline", str(records), "--task", "brain_mri", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "patients.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = by_hand(corpus)
    assert len(expected) > 40
    assert {row["patient_id"]: row["course"] for row in rows if not row["removed_by"]} == expected
    found = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert found["n_patients"] == len(rows)
    assert sum(t["n_changes"] for t in found["transitions"]) == sum(course.count(">") for course in expected.values())


def test_the_command_reads_a_run_and_takes_patients_from_its_input(tmp_path: Path) -> None:
    texts = [
        "Glioblastoma, s/p op. No interval change.",
        "Glioblastoma, no interval change.",
        "Glioblastoma. Increased size, progression.",
    ]
    source = tmp_path / "reports.csv"
    lines = [f"r{n},p1,2020-0{n}-01,{json.dumps(text)}" for n, text in enumerate(texts, 1)]
    source.write_text("id,pat,day,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    run = tmp_path / "run"
    tag = ["tag", str(source), "--id-column", "id", "--task", "brain_mri", "--system", "rules", "--threads", "1", "--out", str(run)]
    assert CliRunner().invoke(app, tag).exit_code == 0
    arguments = ["timeline", str(run), "--task", "brain_mri", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "no record has a patient id" in refused.output
    columns = ["--reports", str(source), "--id-column", "id", "--patient-column", "pat", "--date-column", "day"]
    done = CliRunner().invoke(app, [*arguments, *columns])
    assert done.exit_code == 0, done.output
    assert "1 of 1 patients pass every filter" in done.output
    assert (tmp_path / "out" / "timeline.html").is_file()


def test_the_timeline_of_a_run_that_is_not_finished_is_written_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "reports.csv"
    lines = [f"r{n},p1,2020-0{n}-01,Glioblastoma is stable." for n in range(1, 6)]
    source.write_text("report_id,patient_id,date,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    run = tmp_path / "run"
    tag = ["tag", str(source), "--task", "brain_mri", "--system", "rules", "--threads", "1", "--chunk-reports", "1"]
    assert CliRunner().invoke(app, [*tag, "--out", str(run)]).exit_code == 0
    for left in (run / "summary.json", *(run / "parts").glob("part-000004-*")):  # as a run that was killed leaves it
        left.unlink()
    done = CliRunner().invoke(app, ["timeline", str(run), "--task", "brain_mri", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1, done.output
    assert "4 of 5 reports are tagged, and the timeline is of these alone; go on with 'radtag tag … --resume'" in done.stderr
    assert "4 records of 1 patients" in done.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["n_records"] == 4

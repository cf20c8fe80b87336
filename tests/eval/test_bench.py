"""The benchmark times what it says it times, says what was not measured, and writes the page from the figures alone."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from configs.contracts import ChatPrompt, Completion, EntityFlags, Reading, Report
from configs.schema import load_task
from eval.bench_archives import (
    ArchiveFigures,
    ArchiveRun,
    ArchiveRunError,
    distinct_reports,
    growth,
    run_archive,
    speed_up,
)
from eval.bench_cost import archive_costs, assumptions
from eval.bench_page import write_page
from eval.bench_published import FromScratch, PublishedWay, free_answer
from eval.bench_stage2 import FLOOR, SCORES, SCORES_Q8, TRICKS, Stage2Files, bench_stage2
from eval.bench_systems import dev_split, record_labels, spread
from eval.bench_timing import Timing, Way, time_ways, times_as_fast
from eval.cli import app
from eval.gold import read_gold_reports
from eval.throughput import ARCHIVES, LONG, QUICK, _goals, write_results
from pipeline.run import Pipeline
from stage2_relations.rules import CarefulRules

CHEST, BRAIN = load_task("chest_ct"), load_task("brain_mri")
REPORTS = [Report("a", "Nodule in RUL."), Report("b", "Mass in LLL.")]


def timing(name: str, *cpu_s: float, answers: object = None) -> Timing:
    return Timing(name, 2, cpu_s, cpu_s, answers)


def flags_of(task_keys: Sequence[str], *hinted: str) -> EntityFlags:
    return EntityFlags({key: 0.9 if key in hinted else 0.1 for key in task_keys}, hinted, hinted)


class Scripted:
    """A language model that answers from a list and keeps the prompts."""

    def __init__(self, *answers: str, finished: bool = True) -> None:
        self.answers, self.finished = list(answers), finished
        self.prompts: list[ChatPrompt] = []
        self.grammars: list[str | None] = []

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        self.prompts.append(prompt)
        self.grammars.append(grammar)
        return Completion(self.answers.pop(0), (-0.1,) * 5, self.finished)


class TestTiming:
    def test_every_way_reads_one_report_to_warm_up_and_then_all_in_turn(self) -> None:
        calls: list[tuple[str, int]] = []

        def way(name: str) -> Way:
            return Way(name, lambda reports: calls.append((name, len(reports))))

        found = time_ways([way("x"), way("y")], REPORTS, n_runs=2)
        assert calls == [("x", 1), ("y", 1), ("x", 2), ("y", 2), ("x", 2), ("y", 2)]
        assert found["x"].n_reports == 2
        assert len(found["y"].cpu_s_runs) == len(found["y"].wall_s_runs) == 2

    def test_processor_time_of_a_server_counts_and_sleep_does_not(self) -> None:
        spent = iter([10.0, 14.0])
        served = Way("served", lambda reports: time.sleep(0.05), other_cpu_s=lambda: next(spent))
        found = time_ways([served], REPORTS, n_runs=1)["served"]
        assert found.cpu_s == pytest.approx(2.0, abs=0.02)
        assert 0.025 <= found.wall_s < 2.0

    def test_a_ratio_is_the_median_of_the_ratios_of_each_run(self) -> None:
        both = {"fast": timing("fast", 1.0, 2.0, 1.0), "slow": timing("slow", 10.0, 40.0, 30.0)}
        assert times_as_fast(both, "fast", "slow") == 20.0

    @pytest.mark.parametrize(("names", "n_reports", "n_runs"), [(("x", "x"), 2, 1), (("x",), 0, 1), (("x",), 2, 0)])
    def test_nothing_to_time_is_refused(self, names: tuple[str, ...], n_reports: int, n_runs: int) -> None:
        with pytest.raises(ValueError, match="names"):
            time_ways([Way(name, len) for name in names], REPORTS[:n_reports], n_runs=n_runs)


class TestPublishedWay:
    def test_the_whole_two_shot_prompt_is_read_anew_for_every_report_and_without_grammar(self) -> None:
        model = Scripted("nodule: RUL", "mass: LLL")
        mapper = PublishedWay(CHEST, FromScratch(model))
        readings = mapper.relate(REPORTS, [flags_of(CHEST.keys, "nodule"), flags_of(CHEST.keys, "mass")])
        assert [prompt.prefix for prompt in model.prompts] == ["", ""]
        assert all(prompt.body.count("### Report:") == 3 for prompt in model.prompts)
        assert model.grammars == [None, None]
        assert [self.pairs(reading) for reading in readings] == [{("nodule", "rul")}, {("mass", "lll")}]
        assert (mapper.n_prompts, mapper.n_cut, mapper.n_answer_tokens) == (2, 0, 10)

    def test_a_report_without_a_hint_is_asked_all_the_same_unless_told_otherwise(self) -> None:
        model = Scripted("nodule: RUL")
        assert self.pairs(PublishedWay(CHEST, model).relate(REPORTS[:1], [flags_of(CHEST.keys)])[0]) == {("nodule", "rul")}
        gated = PublishedWay(CHEST, Scripted(), ask_unhinted=False)
        assert self.pairs(gated.relate(REPORTS[:1], [flags_of(CHEST.keys)])[0]) == set()

    def test_later_steps_ask_only_what_the_first_found(self) -> None:
        model = Scripted("glioma: present\nmetastasis: not present", "glioma: progression")
        reading = PublishedWay(BRAIN, model).relate(REPORTS[:1], [flags_of(BRAIN.keys, "glioma", "metastasis")])[0]
        assert self.pairs(reading) == {("glioma", "progression")}
        assert isinstance(reading, Reading)
        assert [finding.key for finding in reading.entities if finding.present] == ["glioma"]
        assert len(model.prompts) == 2

    def test_an_implied_value_comes_with_its_key(self) -> None:
        reading = PublishedWay(CHEST, Scripted("pleural effusion: not stated")).relate(
            REPORTS[:1], [flags_of(CHEST.keys, "pleural_effusion")]
        )[0]
        assert self.pairs(reading) == {("pleural_effusion", "pleural")}

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("nodule: RUL, LLL", {"nodule": ("rul", "lll")}),
            ("Nodule : rul,rul", {"nodule": ("rul",)}),
            ("nodule: not present\nmass: not stated", {"mass": ()}),
            ("nodule: somewhere\nunicorn: RUL", {"nodule": ()}),
            ("nodule: RUL\n\nmass: LLL", {"nodule": ("rul",)}),
            ("nodule: RUL\n### Report:\nmass: LLL", {"nodule": ("rul",)}),
            ("nodule: RUL\nnodule: LLL", {"nodule": ("rul",)}),
            ("", {}),
        ],
    )
    def test_a_free_answer_is_read_line_by_line(self, text: str, found: dict[str, tuple[str, ...]]) -> None:
        assert free_answer(text, {"nodule": "nodule", "mass": "mass"}, {"RUL": "rul", "LLL": "lll"}) == found

    @staticmethod
    def pairs(reading: object) -> set[tuple[str, str]]:
        assert isinstance(reading, Reading)
        return {(relation.subject, relation.value) for relation in reading.relations}


class TestSystems:
    def test_reports_are_evenly_spaced_over_the_dev_split_and_never_of_a_test_split(self) -> None:
        assert dev_split(CHEST).name == "dev.jsonl"
        gold = read_gold_reports(dev_split(CHEST), CHEST)
        chosen = spread(gold, 5)
        assert len({report.report_id for report in chosen}) == 5
        assert chosen[0] is gold[0]
        assert spread(gold, len(gold) + 1) == gold

    def test_labels_of_records_are_those_of_the_pipeline(self) -> None:
        records = Pipeline(CHEST, None, CarefulRules(CHEST), {}).tag([*REPORTS, Report("empty", " ")])
        first, second, rejected = record_labels(records)
        assert rejected is None
        assert first is not None and first.values == {"nodule": frozenset({"rul"})}
        assert second is not None and second.values == {"mass": frozenset({"lll"})}


class TestArchives:
    def test_every_text_and_id_of_an_archive_differs_and_rules_read_it_as_before(self) -> None:
        found = list(distinct_reports(REPORTS, 7))
        assert len({report.text for report in found}) == len({report.report_id for report in found}) == 7
        rules = CarefulRules(CHEST)
        as_given, numbered = rules.relate(REPORTS, [None, None]), rules.relate(found[2:4], [None, None])
        assert as_given == numbered

    def test_no_report_makes_no_archive(self) -> None:
        with pytest.raises(ValueError, match="no report"):
            next(distinct_reports([], 3))

    def test_an_archive_is_tagged_in_a_process_of_its_own_and_its_memory_and_time_are_counted(self, tmp_path: Path) -> None:
        found = run_archive(CHEST, REPORTS, ArchiveRun("rules", 20), tmp_path)
        assert (found.system, found.n_reports, found.workers) == ("rules", 20, 1)
        assert 0 < found.tag_s < found.wall_s
        assert found.cpu_s > 0.1
        assert 20 < found.peak_memory_mib < 400
        assert json.loads((tmp_path / "records" / "summary.json").read_text())["n_read"] == 20

    def test_memory_of_the_process_that_starts_a_run_is_not_counted(self, tmp_path: Path) -> None:
        ballast = bytearray(b"x") * 600_000_000
        found = run_archive(CHEST, REPORTS, ArchiveRun("rules", 2), tmp_path)
        assert len(ballast) == 600_000_000
        assert found.peak_memory_mib < 400

    def test_a_run_that_fails_is_told_and_not_timed(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveRunError, match="ended with 1"):
            run_archive(CHEST, [Report("x", "x" * 3_000_000)], ArchiveRun("rules", 1), tmp_path)

    def test_growth_and_speed_up_compare_runs_of_one_system(self) -> None:
        runs = [
            ArchiveFigures("rules", 1000, 1, 11.0, 10.0, 9.0, 50.0),
            ArchiveFigures("rules", 10_000, 1, 101.0, 100.0, 90.0, 55.0),
            ArchiveFigures("rules", 10_000, 2, 61.0, 50.0, 95.0, 60.0),
        ]
        assert growth(runs, "rules", small=1000, large=10_000, of="peak_memory_mib") == pytest.approx(1.1)
        assert growth(runs, "rules", small=1000, large=100_000, of="tag_s") is None
        assert growth(runs, "encoder", small=1000, large=10_000, of="tag_s") is None
        assert speed_up(runs) == ("rules", 10_000, 2.0)
        assert speed_up(runs[:2]) is None


class TestCost:
    def test_hours_and_days_follow_from_processor_seconds(self) -> None:
        found = {(cost.system, cost.n_reports): cost for cost in archive_costs({"rules": 0.0036, "other": None}, speed_up=1.6)}
        million = found["rules", 10**6]
        assert million.core_hours == pytest.approx(1.0)
        assert million.days[16] == pytest.approx(1 / 16 / 0.8 / 24)
        assert found["rules", 10**8].core_hours == pytest.approx(100.0)
        assert found["other", 10**6].core_hours is None
        assert set(found["other", 10**6].days.values()) == {None}

    def test_what_was_not_measured_is_said(self) -> None:
        assert any("not measured" in sentence for sentence in assumptions(speed_up=None, n_tokens=100.0))
        assert any("GPU" in sentence for sentence in assumptions(speed_up=1.9, n_tokens=100.0))


def results() -> dict[str, Any]:
    """A small object of the form of results.json, with its gaps."""
    way = {"n_reports": 2, "n_runs": 1, "wall_s_a_report": 0.5, "cpu_s_a_report_lowest": 0.4, "cpu_s_a_report_highest": 0.6}
    figures = {"pair_macro_f1": 0.91, "pair_micro_f1": None, "key_micro_f1": 0.8, "n_scored": 2, "n_failed": 0, "note": "n"}
    runs = [ArchiveFigures("rules", n, 1, 2.0, 1.0, 1.5, 50.0) for n in (1000, 10_000)]
    ratios = {
        "two-stage against the published way": 23.456,
        "two-stage against langextract": None,
        "share of the floor, stage 2 on reports with a hint": 0.5,
    }
    trick = {"trick": "t", "off": "a", "on": "b", "off_cpu_s": 2.0, "on_cpu_s": 1.0, "times_as_fast": 2.0}
    return {
        "format_version": 1,
        "made": "2026-01-02",
        "radtag": "0.1.0",
        "plan": {"name": "quick", "n_timed": 2, "n_runs": 1, "score_all": False},
        "machine": {
            "processor": "P",
            "cores": 2,
            "system": "S",
            "python": "3.11",
            "libraries": {"torch": "2"},
            "load_average_begin": 0.1,
            "load_average_end": 0.2,
        },
        "seconds": 300.0,
        "tasks": {
            "chest_ct": {
                "stage1": {
                    "encoder_ms": 1.0,
                    "padded_ms": 7.0,
                    "speedup": 7.0,
                    "n_texts": 3,
                    "tokens_a_text": 80.0,
                    "n_dev": 0,
                    "encoder_f1": None,
                    "padded_f1": None,
                    "logit_difference": 0.1,
                },
                "stage2": {
                    "mean_report_tokens": 120.0,
                    "n_reports_without_hint": 1,
                    "adapted": False,
                    "ways": [{"name": FLOOR, "cpu_s_a_report": 0.3, **way}],
                    "tricks": [trick],
                },
                "systems": [{"name": "two-stage", "cpu_s_a_report": 0.5, **way, **figures}],
                "not_measured": {"langextract": "not installed: langextract"},
                "ratios": ratios,
            }
        },
        "archives": {"task": "chest_ct", "runs": [run.as_object() for run in runs]},
        "cost": {
            "archives": [cost.as_object() for cost in archive_costs({"rules": 0.01, "langextract": None}, speed_up=None)],
            "assumptions": assumptions(speed_up=None, n_tokens=120.0),
        },
        "goals": _goals({"chest_ct": ratios}, runs),
    }


class TestPage:
    def test_the_page_says_what_was_reached_missed_and_not_measured(self, tmp_path: Path) -> None:
        found = results()
        write_results(found, tmp_path / "bench" / "results.json")
        write_page(json.loads((tmp_path / "bench" / "results.json").read_text(encoding="utf-8")), tmp_path / "docs" / "P.md")
        text = (tmp_path / "docs" / "P.md").read_text(encoding="utf-8")
        lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
        assert lines["chest_ct: two-stage against the published way, times as fast"].endswith("| ≥ 20 | 23.5 | yes |")
        assert lines["chest_ct: two-stage against langextract, times as fast"].endswith("| ≥ 10 | – | not measured |")
        assert lines["chest_ct: stage 2, share of the prefill floor"].endswith("| ≥ 0.7 | 0.5 | **no** |")
        assert "91.0 / –" in lines["two-stage"]
        assert "Not measured: langextract: not installed: langextract." in text
        assert "| 1,000,000 | any, on one GPU | not measured | – | – |" in text
        assert "nan" not in text and "None" not in text

    def test_the_picture_is_svg_and_the_same_for_the_same_figures(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            write_page(results(), tmp_path / name / "P.md")
        pictures = [(tmp_path / name / "performance.svg").read_bytes() for name in ("one", "two")]
        assert pictures[0] == pictures[1]
        assert ET.fromstring(pictures[0]).tag.endswith("svg")

    def test_the_plans_grow_archives_by_tens_up_to_a_hundred_thousand(self) -> None:
        assert max(run.n_reports for run in QUICK.archives) == 1000
        for plan in (ARCHIVES, LONG):
            sizes = {run.n_reports for run in plan.archives if run.system == "encoder" and run.workers == 1}
            assert sizes == {10**3, 10**4, 10**5}
        assert all(any(run.workers == 2 for run in plan.archives) for plan in (QUICK, ARCHIVES, LONG))

    def test_an_unknown_plan_is_one_line_with_the_nearest(self) -> None:
        ended = CliRunner().invoke(app, ["throughput", "--plan", "lon"])
        assert ended.exit_code == 2
        assert "plan 'lon' is not known; did you mean 'long'?" in ended.output


@pytest.mark.llm
@pytest.mark.slow
def test_stage_2_is_timed_with_each_trick_and_the_floor_is_below_it() -> None:
    from stage2_relations.adapter_folder import default_adapter
    from stage2_relations.model_file import default_model

    reports = [Report("r1", "A 9 mm nodule in the RUL, unchanged. No effusion. The mass of the left lower lobe measures 4 cm.")]
    flags = {"r1": flags_of(CHEST.keys, "nodule", "mass")}
    found = bench_stage2(CHEST, Stage2Files(default_model(), None, default_adapter("chest_ct")), reports, flags, n_runs=1)
    assert {trick.on for trick in TRICKS} | {FLOOR} <= set(found.timings)
    assert found.timings[FLOOR].cpu_s < found.timings[SCORES].cpu_s
    assert 0 < found.floor_share < 1
    assert {SCORES, SCORES_Q8} <= set(found.timings)
    assert found.n_tokens > 10
    assert all(row["times_as_fast"] > 0 for row in found.as_object()["tricks"])

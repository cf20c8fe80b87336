"""`radtag eval run` from a gold file to the page: what it writes, what it keeps, what it refuses."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import load_task
from eval import run as run_module
from eval.cli import app
from eval.gold import Answer, GoldError, GoldReport, Labels, read_gold_reports
from eval.results import Results
from eval.run import evaluate, run_evaluation
from eval.score import HEADLINES, scope_of
from eval.systems import ModelReading, RecordedSystem, SystemAnswers, TaggingSystem, parse_systems, system_answers
from eval.verdict import verdict
from pipeline.settings import SettingsError

ROOT = Path(__file__).parents[2]
TASK = load_task("chest_ct")
DEV = ROOT / "training" / "corpus" / "chest_ct" / "dev.jsonl"


def gold_file(path: Path, n_reports: int) -> Path:
    path.write_text("".join(line + "\n" for line in DEV.read_text("utf-8").splitlines()[:n_reports]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one whole run on 24 reports: two systems that tag, and gold itself as a third."""
    folder = tmp_path_factory.mktemp("run")
    gold = gold_file(folder / "gold.jsonl", 24)
    result = CliRunner().invoke(
        app,
        ["run", str(gold), "--task", "chest_ct", "--systems", f"published-rules,rules,second={gold}", "--out", str(folder / "out")],
    )
    assert result.exit_code == 0, result.stderr
    (folder / "stdout").write_text(result.stdout, encoding="utf-8")
    (folder / "stderr").write_text(result.stderr, encoding="utf-8")
    return folder


def answers(name: str, rows: Sequence[Labels | None], *, relations: bool = True) -> SystemAnswers:
    return SystemAnswers(name, tuple(Answer(row) for row in rows), states_relations=relations)


def gold_rows(*keys: str, text: str | None = None) -> list[GoldReport]:
    return [
        GoldReport(Labels(f"r{i}", {key: frozenset() for key in some.split()}), text, f"p{i // 2}") for i, some in enumerate(keys)
    ]


class Page(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action", "data")
        ]
        assert tag not in ("link", "iframe", "img", "object", "embed", "image")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_run_writes_page_results_tables_and_figures(finished: Path) -> None:
    out = finished / "out"
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert list(results["systems"]) == ["published-rules", "rules", "second"]
    assert results["gold"]["n_reports"] == 24
    assert re.fullmatch("[0-9a-f]{64}", results["gold"]["sha256"])
    for system in results["systems"].values():
        assert set(system["figures"]) == {item.name for item in HEADLINES}
        assert all(figure["n"] is not None and figure["unit"] for figure in system["figures"].values())
    assert results["systems"]["second"]["figures"]["keys_accuracy"]["value"] == 1
    assert re.fullmatch("[0-9a-f]{32}", results["systems"]["rules"]["fingerprint"])
    assert {path.name for path in (out / "tables").iterdir()} >= {"figures.csv", "comparisons.csv", "subsets.csv", "error_list.csv"}
    names = {path.stem for path in (out / "figures").glob("*.svg")}
    assert names == {path.stem for path in (out / "figures").glob("*.png")} >= {"headline", "keys", "errors", "heatmap_rules"}
    assert len(results["comparisons"]) == 6


def test_tables_say_what_results_say(finished: Path) -> None:
    results = json.loads((finished / "out" / "results.json").read_text("utf-8"))
    with (finished / "out" / "tables" / "figures.csv").open(encoding="utf-8") as stream:
        rows = {(row["of"], row["figure"], row["system"]): row for row in csv.DictReader(stream)}
    for item in HEADLINES:
        for name, system in results["systems"].items():
            row, figure = rows["pairs" if item.pairs else "keys", item.label, name], system["figures"][item.name]
            assert row["%"] == ("–" if figure["value"] is None else f"{100 * figure['value']:.1f}")
            assert int(row["n"]) == figure["n"]


def test_the_page_fetches_nothing_and_shows_errors_in_their_text(finished: Path) -> None:
    html = (finished / "out" / "report.html").read_text("utf-8")
    page = Page()
    page.feed(html)
    assert page.addresses
    assert all(address.startswith("#") for address in page.addresses)
    assert "url(http" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert '<mark class="extra"' in html
    assert "Best on keys: second, 100.0 % of 24 reports exactly right" in page.text


def test_every_link_and_clip_inside_the_page_has_its_target(finished: Path) -> None:
    html = (finished / "out" / "report.html").read_text("utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', html))
    assert used <= set(ids)
    assert [name for name in used if ids.count(name) > 1] == []


def test_report_text_stays_in_the_page_and_the_records(finished: Path) -> None:
    texts = [json.loads(line)["text"] for line in (finished / "gold.jsonl").read_text("utf-8").splitlines()]
    words = [max(text.split("\n"), key=len)[:40] for text in texts]
    out = finished / "out"
    files = [
        out / "results.json",
        finished / "stdout",
        finished / "stderr",
        *(out / "tables").iterdir(),
        *(out / "figures").glob("*.svg"),
    ]
    for path in files:
        content = path.read_text("utf-8")
        assert [word for word in words if word in content] == [], path.name


def test_a_second_call_tags_nothing_and_finds_the_same(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tagged again")

    monkeypatch.setattr("pipeline.run.Pipeline.tag", refuse)
    results = run_evaluation(
        TASK,
        read_gold_reports(finished / "gold.jsonl", TASK),
        parse_systems("published-rules,rules", task="chest_ct"),
        out=finished / "out",
        gold_name="gold.jsonl",
    )
    assert [system.answers.n_tagged for system in results.systems] == [0, 0]
    before = json.loads((finished / "out" / "results.json").read_text("utf-8"))
    assert results.as_object()["systems"]["rules"] == before["systems"]["rules"]


def test_changed_texts_are_tagged_again(tmp_path: Path) -> None:
    system = TaggingSystem("rules", parse_systems("rules", task="chest_ct")[0].settings)  # type: ignore[union-attr]
    gold = gold_rows("nodule", text="Nodule in the RUL.")
    first = system_answers(system, TASK, gold, tmp_path)
    again = system_answers(system, TASK, gold, tmp_path)
    changed = system_answers(system, TASK, gold_rows("nodule", text="Mass in the RUL."), tmp_path)
    assert (first.n_tagged, again.n_tagged, changed.n_tagged) == (1, 0, 1)
    assert first.answers == again.answers
    assert changed.answers[0].labels is not None
    assert changed.answers[0].labels.keys == {"mass"}


def test_the_gold_file_of_the_readme_runs_as_it_stands_there(tmp_path: Path) -> None:
    """Mistake 10: evaluation that crashes on the file its own readme describes."""
    readme = (ROOT / "eval" / "README.md").read_text("utf-8")
    (block,) = re.findall(r"```jsonl\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "gold.jsonl").write_text(block, encoding="utf-8")
    gold = read_gold_reports(tmp_path / "gold.jsonl", TASK)
    assert len(gold) == 4
    results = run_evaluation(TASK, gold, parse_systems("rules", task="chest_ct"), out=tmp_path / "out", gold_name="gold.jsonl")
    assert results.systems[0].figures["keys_accuracy"] == 1
    assert results.n_patients == 3
    assert results.n_without_patient == 1
    fields = set(re.findall(r"^\| `(\w+)`|, `(\w+)`", readme, re.MULTILINE))
    assert {"labels", "text", "patient_id"} <= {name for pair in fields for name in pair}


def test_records_need_no_text_and_tagging_does(tmp_path: Path) -> None:
    gold = gold_rows("nodule", "")
    labels = tmp_path / "answers.jsonl"
    labels.write_text("".join(json.dumps({"report_id": f"r{i}", "labels": {}}) + "\n" for i in range(2)))
    recorded = run_evaluation(TASK, gold, [RecordedSystem("ours", labels)], out=tmp_path, gold_name="gold")
    assert recorded.systems[0].figures["keys_accuracy"] == 0.5
    assert recorded.systems[0].negation is None
    assert not (tmp_path / "records").exists()
    with pytest.raises(GoldError, match="2 of 2 gold reports have no 'text' and cannot be tagged by 'rules'; the first is 'r0'"):
        run_evaluation(TASK, gold, parse_systems("rules", task="chest_ct"), out=tmp_path, gold_name="gold")


def test_an_empty_set_and_an_empty_list_of_systems_are_errors(tmp_path: Path) -> None:
    with pytest.raises(GoldError, match="holds no report"):
        run_evaluation(TASK, [], parse_systems("rules", task="chest_ct"), out=tmp_path, gold_name="gold")
    with pytest.raises(GoldError, match="no system is given"):
        run_evaluation(TASK, gold_rows("nodule"), [], out=tmp_path, gold_name="gold")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ruls", "system 'ruls' is not known; did you mean 'rules'?"),
        ("rules,rules", "system 'rules' stands twice"),
        ("rules,", "hold an empty name"),
        ("ours=nowhere.jsonl", "system 'ours': nowhere.jsonl does not exist"),
    ],
)
def test_systems_that_cannot_be_used_are_named(given: str, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        parse_systems(given, task="chest_ct")


def test_encoder_and_model_go_to_the_systems_that_use_one(tmp_path: Path) -> None:
    systems = parse_systems(
        "rules,encoder,llm", task="chest_ct", encoder=tmp_path / "weights", model=tmp_path / "m.gguf", threads=3
    )
    chosen = [system.settings for system in systems if isinstance(system, TaggingSystem)]
    assert [(s.encoder is not None, s.model is not None, s.threads) for s in chosen] == [
        (False, False, 3),
        (True, False, 3),
        (False, True, 3),
    ]


def test_how_a_model_is_read_goes_to_the_systems_that_have_one(tmp_path: Path) -> None:
    reading = ModelReading(no_adapter=True, read="score", http_concurrency=1)
    chosen = [s.settings for s in parse_systems("rules,encoder,llm,two-stage", task="chest_ct", reading=reading)]  # type: ignore[union-attr]
    assert [(s.no_adapter, s.read) for s in chosen] == [(False, None)] * 2 + [(True, "score")] * 2
    (llm,) = parse_systems("llm", task="chest_ct", reading=ModelReading(adapter=tmp_path))
    assert isinstance(llm, TaggingSystem) and llm.settings.adapter == tmp_path


@pytest.mark.parametrize(
    ("systems", "reading", "said"),
    [
        ("rules", ModelReading(server="http://box"), "--server goes with two-stage or llm; --systems 'rules' names none of them"),
        ("encoder", ModelReading(server_timeout_s=3.0), "--server-timeout goes with two-stage or llm"),
        ("rules,llm", ModelReading(server="http://box"), "--server needs --server-model"),
        ("rules,llm", ModelReading(read="scores"), "read 'scores' is not known; did you mean 'score'"),
        ("llm", ModelReading(adapter=ROOT, no_adapter=True), "--adapter and --no-adapter exclude each other"),
        ("llm", ModelReading(adapter=ROOT, read="generate"), "is an adapter folder, trained to be read by scores"),
    ],
)
def test_ways_of_reading_that_cannot_be_used_are_named(systems: str, reading: ModelReading, said: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        parse_systems(systems, task="chest_ct", reading=reading)


@pytest.mark.parametrize("command", [["eval", "run"], ["eval", "benchmark"]])
def test_options_of_the_model_are_those_of_tag(command: list[str]) -> None:
    """Name, default and help of every option that says which model runs and how it is read."""
    from typer.main import get_command

    from pipeline.cli import app as radtag

    def options(names: list[str]) -> dict[str, tuple[object, str]]:
        found = get_command(app if names[0] == "eval" else radtag).commands[names[-1]]  # type: ignore[attr-defined]
        return {flag: (each.default, each.help) for each in found.params for flag in each.opts if each.param_type_name == "option"}

    names = ["--model", "--gpu-layers", "--adapter", "--no-adapter", "--read"]
    names += ["--server", "--server-model", "--server-plain", "--server-timeout", "--http-concurrency"]
    here, there = options(command), options(["tag"])
    assert {name: here[name] for name in names} == {name: there[name] for name in names}


def test_a_server_reads_for_an_evaluation(tmp_path: Path, chat_server, chat_answers) -> None:
    gold = gold_file(tmp_path / "gold.jsonl", 3)
    server = chat_server(lambda request: (200, chat_answers("no answer that was offered")))
    arguments = ["run", str(gold), "--task", "chest_ct", "--systems", "rules,llm", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--server", server.url, "--server-model", "m", "--server-plain"])
    assert result.exit_code == 1, result.output  # answered, and nothing that can be read
    assert {request["model"] for request in server.requests} == {"m"}
    assert not any("grammar" in request for request in server.requests)
    (run,) = (tmp_path / "out" / "records").glob("llm-*/run.json")
    assert json.loads(run.read_text("utf-8"))["provenance"]["server_fields"] == "plain"


def two_systems(n_better: int, n_worse: int, n_same: int) -> Results:
    n = n_better + n_worse + n_same
    gold = gold_rows(*["nodule"] * n)
    right, wrong = [Labels("r", {"nodule": frozenset()})] * n, Labels("r", {})
    first = [right[0]] * n_better + [wrong] * n_worse + [right[0]] * n_same
    second = [wrong] * n_better + [right[0]] * n_worse + [right[0]] * n_same
    systems = [answers("ours", first, relations=False), answers("theirs", second, relations=False)]
    return evaluate(TASK, gold, systems, gold_name="gold", scope=scope_of(TASK, subjects=[]))


def test_the_verdict_says_real_only_where_the_test_does() -> None:
    real = verdict(two_systems(12, 1, 20))
    assert "Best on keys: ours" in real.best[0]
    assert "better than every other" in real.best[0]
    assert real.comparisons[0][1]
    assert "a real difference (12 reports only ours reads right, 1 only theirs" in real.comparisons[0][0]
    doubtful = verdict(two_systems(3, 1, 20))
    assert "not shown to be better than theirs" in doubtful.best[0]
    assert not doubtful.comparisons[0][1]
    assert "no real difference shown" in doubtful.comparisons[0][0]
    level = verdict(two_systems(2, 2, 20))
    assert level.best[0].startswith("Level on keys: ours, theirs")
    assert "level" in level.comparisons[0][0]


def test_the_verdict_names_the_better_system_first_whatever_their_order() -> None:
    worse_first = verdict(two_systems(1, 12, 20))
    assert "Best on keys: theirs" in worse_first.best[0]
    assert "theirs 97.0 % against ours 63.6 %" in worse_first.comparisons[0][0]
    assert "12 reports only theirs reads right, 1 only ours" in worse_first.comparisons[0][0]


def test_one_system_alone_is_compared_with_nothing_and_perfect_ones_have_no_weakness() -> None:
    gold = gold_rows("nodule", "", "mass")
    found = verdict(evaluate(TASK, gold, [answers("ours", [report.labels for report in gold])], gold_name="gold"))
    assert found.comparisons == ()
    assert "nothing to compare" in " ".join(found.best)
    assert found.weakness == "ours makes no error on these reports."


def test_failed_rows_count_as_wrong_and_are_said() -> None:
    gold = gold_rows("nodule", "")
    results = evaluate(TASK, gold, [answers("ours", [gold[0].labels, None])], gold_name="gold")
    assert results.systems[0].figures["keys_accuracy"] == 0.5
    assert results.systems[0].figures["keys_specificity"] == 0
    assert any("1 of 2 reports have no answer" in note for note in results.notes)
    assert [error.kind for error in results.systems[0].errors] == ["invalid"]


def test_pair_figures_of_a_system_without_relations_are_undefined_and_not_zero() -> None:
    gold = [GoldReport(Labels("r0", {"nodule": frozenset({"rul"})}), None, "p")]
    systems = [answers("encoder", [Labels("r0", {"nodule": frozenset()})], relations=False), answers("ours", [gold[0].labels])]
    results = evaluate(TASK, gold, systems, gold_name="gold")
    found = results.as_object()["systems"]["encoder"]["figures"]
    assert {found[item.name]["value"] for item in HEADLINES if item.pairs} == {None}
    assert [(c.what, c.first, c.second) for c in results.comparisons] == [("keys", "encoder", "ours")]
    assert [error for error in results.systems[0].errors if error.subject is not None] == []


def test_one_patient_has_no_interval() -> None:
    gold = [GoldReport(Labels(f"r{i}", {"nodule": frozenset()}), None, "p") for i in range(4)]
    results = evaluate(TASK, gold, [answers("ours", [report.labels for report in gold])], gold_name="gold")
    assert results.as_object()["systems"]["ours"]["figures"]["keys_micro_f1"]["interval"]["low"] is None


def test_the_same_seed_gives_the_same_results() -> None:
    assert two_systems(5, 2, 9).as_object() == two_systems(5, 2, 9).as_object()


def test_bad_gold_ends_the_command_with_one_line_and_exit_two(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text('{"report_id": "a", "labels": {"nodul": []}}\n')
    arguments = ["run", str(tmp_path / "gold.jsonl"), "--task", "chest_ct", "--systems", "rules", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.strip().endswith("gold.jsonl:1: label 'nodul' is not known; did you mean 'nodule'?")
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_with_failed_rows_writes_everything_and_ends_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gold.jsonl").write_text(json.dumps({"report_id": "a", "labels": {}, "text": "x" * 200_000}) + "\n")
    monkeypatch.setattr(run_module, "write_evaluation", lambda results, out: [out / "report.html", out / "results.json"])
    arguments = ["run", str(tmp_path / "gold.jsonl"), "--task", "chest_ct", "--systems", "rules", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "1 of 1 reports have no answer" in result.stdout


def test_agreement_prints_kappa_by_key_and_refuses_other_reports(tmp_path: Path) -> None:
    rows = [{"report_id": f"r{i}", "labels": {"nodule": ["rul"]} if i < 5 else {}} for i in range(10)]
    other = [
        {"report_id": f"r{i}", "labels": {"nodule": ["rul" if i else "lll"]} if 0 < i < 6 or i == 0 else {}} for i in range(10)
    ]
    first, second, short = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.jsonl"
    for path, some in ((first, rows), (second, other), (short, rows[:9])):
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    result = CliRunner().invoke(app, ["agreement", str(first), str(second), "--task", "chest_ct"])
    assert result.exit_code == 0, result.stderr
    printed = {line.split("  ")[0]: line.split() for line in result.stdout.splitlines()}
    # nodule: 5 yes both, 1 only the second, 4 no both: agreement 0.9, chance 0.5·0.6 + 0.5·0.4 = 0.5
    assert printed["nodule"][1:6] == ["10", "5", "6", "90.0", "0.80"]
    assert printed["mass"][5] == "–"
    refused = CliRunner().invoke(app, ["agreement", str(first), str(short), "--task", "chest_ct"])
    assert refused.exit_code == 2
    assert "differ in 1 reports; the first is 'r9'" in refused.stderr

"""Public data sets as annotated reports. The rows here are invented; only columns and codes are those of the published files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.schema import ConfigError, load_task
from eval import folds as folds_module
from eval.benchmarks import load_benchmark
from eval.cli import app
from eval.folds import out_of_fold_answers, write_folds
from eval.gold import Answer, GoldError, Labels
from eval.negex import condition_spans, mapped_key, read_negex, reader_score
from eval.openi import CLEAN, LOCATED, read_code
from eval.public_sets import ALL, Benchmark, read_mapping
from eval.systems import SystemAnswers, TaggingSystem
from pipeline.settings import settings

SHARED = Path(__file__).parents[3] / "shared" / "data"
TASK = load_task("chest_ct")
MAPPING = read_mapping()
CT_RATE_COLUMNS = ["AccessionNo", "report_text", *MAPPING.ctrate.not_mapped, *MAPPING.ctrate.keys]
OPEN_I_COLUMNS = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
NEGEX_HEADER = (
    "line number\tCondition\tsentence\tnegation_status (negated, affirmed, possible)\t"
    "temporality (historical, recent, hypothetical)\texperiencer (patient, other)"
)


def table(path: Path, columns: list[str], rows: list[dict[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="0" if columns is CT_RATE_COLUMNS else "")
        writer.writeheader()
        writer.writerows(rows)
    return path


def ct_rate(path: Path, *rows: tuple[str, str, list[str]]) -> Path:
    return table(path, CT_RATE_COLUMNS, [{"AccessionNo": i, "report_text": t} | dict.fromkeys(cs, "1") for i, t, cs in rows])


CT_ROWS = (
    ("train_1", "A 5 mm nodule is observed in the right upper lobe. Pleural effusion was not detected.", ["Lung nodule"]),
    ("train_2", "Bilateral pleural effusion and passive atelectasis.", ["Pleural effusion", "Atelectasis", "Cardiomegaly"]),
    ("train_3", "Findings are within normal limits.", []),
    ("train_4", "Emphysema. No consolidation.", ["Emphysema"]),
)


def test_ct_rate_labels_become_our_keys_and_its_other_labels_are_named(tmp_path: Path) -> None:
    found = load_benchmark("ctrate", ct_rate(tmp_path / "train.csv", *CT_ROWS))
    assert [sorted(report.labels.keys) for report in found.gold] == [["nodule"], ["atelectasis", "pleural_effusion"], [], []]
    assert len(found.scope.keys) == 9
    assert found.scope.subjects == ()
    assert {"mass", "pleural_thickening"} & set(found.scope.keys) == set()
    assert "Cardiomegaly" in found.notes[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Atelectasis": "2"}, "row 1: 'Atelectasis' is neither 0 nor 1"),
        ({"Lung nodule": ""}, "row 1: 'Lung nodule' is neither 0 nor 1"),
        ({"report_text": " "}, "row 1: 'report_text' is empty"),
        ({"AccessionNo": ""}, "row 1: has no report id"),
        ({"AccessionNo": "train_2"}, "row 2: report id 'train_2' stands twice"),
    ],
)
def test_a_bad_row_of_ct_rate_is_refused_with_its_place(tmp_path: Path, change: dict[str, str], said: str) -> None:
    rows = [{"AccessionNo": i, "report_text": t} | dict.fromkeys(cs, "1") for i, t, cs in CT_ROWS]
    rows[0] |= change
    with pytest.raises(GoldError) as error:
        load_benchmark("ctrate", table(tmp_path / "train.csv", CT_RATE_COLUMNS, rows))
    assert said in str(error.value)


def test_columns_are_found_by_name_in_any_order_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    rows = [{"AccessionNo": i, "report_text": t} | dict.fromkeys(cs, "1") for i, t, cs in CT_ROWS]
    turned = [{name: row.get(name, "0") for name in reversed(CT_RATE_COLUMNS)} for row in rows]
    same = load_benchmark("ctrate", table(tmp_path / "turned.csv", list(reversed(CT_RATE_COLUMNS)), turned))
    assert [sorted(report.labels.keys) for report in same.gold][:2] == [["nodule"], ["atelectasis", "pleural_effusion"]]
    less = [{name: cell for name, cell in row.items() if name != "Lung nodule"} for row in turned]
    with pytest.raises(GoldError, match="has no column 'Lung nodule'"):
        load_benchmark("ctrate", table(tmp_path / "less.csv", list(less[0]), less))


@pytest.mark.parametrize(
    ("code", "key", "values", "clean"),
    [
        ("Pulmonary Atelectasis/base/left", "atelectasis", {"lll"}, True),
        ("Pulmonary Atelectasis/base/bilateral/mild", "atelectasis", {"bll"}, True),
        ("Pulmonary Atelectasis/base", "atelectasis", set(), False),
        ("Pulmonary Atelectasis/left", "atelectasis", {"left_lung"}, True),
        ("Pulmonary Atelectasis/hilum/right", "atelectasis", {"right_lung"}, False),
        ("Pulmonary Atelectasis", "atelectasis", set(), True),
        ("Nodule/lung/apex/right/round", "nodule", {"rul"}, True),
        ("Nodule/lung/lingula", "nodule", {"left_lingula"}, True),
        ("Nodule/lung/bilateral/multiple", "nodule", {"right_lung", "left_lung"}, True),
        ("Nodule/heart/left/small", None, set(), True),
        ("Consolidation/lung/middle lobe/right", "consolidation", {"rml"}, True),
        ("Cicatrix/lung/upper lobe/left", "fibrosis", {"lul"}, True),
        ("Cicatrix/breast/right", None, set(), True),
        ("Cicatrix/lung/base/middle lobe/right", "fibrosis", {"rll", "rml"}, True),
        ("Thickening/pleura/apex/left", "pleural_thickening", set(), False),
        ("Thickening/lung/lower lobe/bronchi/bilateral", "bronchial_wall_thickening", {"bll"}, True),
        ("Thickening/right/paratracheal", None, set(), False),
        ("Pleural Effusion/left/small", "pleural_effusion", set(), True),
        ("Opacity/lung/base/left", None, set(), False),
        ("Cardiomegaly/mild", None, set(), True),
    ],
)
def test_a_code_of_open_i_gives_key_and_places(code: str, key: str | None, values: set[str], clean: bool) -> None:
    found = read_code(code, MAPPING.openi, TASK)
    assert (found.key, set(found.values), found.clean) == (key, values, clean)


OPEN_I_ROWS = [
    {"uid": "1", "MeSH": "normal", "findings": "The lungs are clear.", "impression": "Normal chest."},
    {"uid": "2", "MeSH": "Pulmonary Atelectasis/base/left", "findings": "Left basilar atelectasis.", "impression": ""},
    {"uid": "3", "MeSH": "No Indexing", "findings": "Heart size is normal.", "impression": ""},
    {"uid": "4", "MeSH": "Cicatrix/lung/apex/right;Opacity/lung/base/left", "findings": "Right apical scar.", "impression": "."},
    {"uid": "5", "MeSH": "Cardiomegaly", "findings": " ", "impression": ""},
    {"uid": "6", "MeSH": "Pulmonary Atelectasis;Nodule/lung/left", "findings": "", "impression": "Left nodule, atelectasis."},
]


def test_open_i_leaves_out_what_has_no_labels_or_no_text_and_says_so(tmp_path: Path) -> None:
    found = load_benchmark("openi", table(tmp_path / "openi.csv", OPEN_I_COLUMNS, OPEN_I_ROWS))
    assert [report.report_id for report in found.gold] == ["1", "2", "4", "6"]
    assert found.gold[1].text == "Left basilar atelectasis."
    subsets = {name: [found.gold[place].report_id for place in places] for name, places in found.subsets.items()}
    assert subsets == {ALL: ["1", "2", "4", "6"], LOCATED: ["2", "4", "6"], CLEAN: ["2"]}
    assert "1 of 6 (16.7 %) reports without labels, 1 of 6 (16.7 %) without text" in found.notes[0]


def test_open_i_rows_without_a_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GoldError, match="row 1: 'MeSH' is empty"):
        load_benchmark("openi", table(tmp_path / "openi.csv", OPEN_I_COLUMNS, [{"uid": "1", "MeSH": "", "findings": "x"}]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Atelectasis: atelectasis", "Atelectasis: atelectasi", "key 'atelectasi' is not known; did you mean 'atelectasis'?"),
        ("{right: rml, any: rml}", "{right: rmll, any: rml}", "value 'rmll' is not known; did you mean 'rml'?"),
        ("unlabelled: [No Indexing]", "unlabeled: [No Indexing]", "'unlabeled' is not known; did you mean 'unlabelled'?"),
    ],
)
def test_a_slip_in_the_mapping_is_an_error_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = (Path(__file__).parents[2] / "eval" / "benchmarks.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "benchmarks.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ConfigError) as error:
        read_mapping(path)
    assert f":{line}: {said}" in str(error.value)


NEGEX_ROWS = [
    ("effusion", "There is no EFFUSION.", "Negated", "Recent", "Patient"),
    ("pleural  effusion", "Small PLEURAL EFFUSION is seen.", "Affirmed", "Recent", "Patient"),
    ("chest pain", "She denies CHEST PAIN.", "Negated", "Recent", "Patient"),
    ("pneumonia", "History of PNEUMONIA.", "Affirmed", "Historical", "Patient"),
    ("atelectasis", "Old ATELECTASIS.", "Affirmed", "Historical", "Patient"),
    ("fever", "Cough and chills.", "Affirmed", "Recent", "Patient"),
    ("mass", "Questionable MASS.", "Possible", "Recent", "Patient"),
]


def negex(path: Path, rows: list[tuple[str, ...]], header: str = NEGEX_HEADER) -> Path:
    path.write_text(header + "\n" + "".join(f"{n}\t" + "\t".join(row) + "\n" for n, row in enumerate(rows, 1)), encoding="utf-8")
    return path


def test_negation_is_asked_where_the_condition_stands_in_the_sentence(tmp_path: Path) -> None:
    sentences, n_left_out = read_negex(negex(tmp_path / "negex.txt", NEGEX_ROWS), MAPPING.negex)
    assert n_left_out == 1
    assert [bool(sentence.spans) for sentence in sentences] == [True, True, True, True, True, False]
    score = reader_score(sentences, TASK)
    assert (score.n, score.n_right, score.counts.n_gold, score.counts.n_hit) == (5, 5, 2, 2)
    assert [mapped_key(sentence, TASK) for sentence in sentences] == [
        "pleural_effusion",
        "pleural_effusion",
        None,
        None,
        None,
        None,
    ]


def test_a_condition_is_found_as_a_whole_word_first() -> None:
    (span,) = condition_spans("mass", "No massive MASS.")
    assert (span.start, span.end) == (11, 15)
    assert condition_spans("mass", "Nothing.") == ()


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        (
            [("a", "A.", "Negatd", "Recent", "Patient")],
            NEGEX_HEADER,
            ":2: negation status 'Negatd' is not known; did you mean 'Negated'?",
        ),
        ([("a", "A.", "Negated", "Recent")], NEGEX_HEADER, ":2: has 5 cells; the header has 6"),
        (NEGEX_ROWS, NEGEX_HEADER.replace("Condition", "Conditon"), ":1: column 'Condition' is missing; did you mean 'Conditon'?"),
        ([], NEGEX_HEADER, "holds no sentence"),
    ],
)
def test_a_bad_negation_file_is_refused_with_its_line(tmp_path: Path, rows: list[tuple[str, ...]], header: str, said: str) -> None:
    with pytest.raises(GoldError) as error:
        read_negex(negex(tmp_path / "negex.txt", rows, header), MAPPING.negex)
    assert said in str(error.value)


def many(path: Path, n_texts: int = 24) -> Benchmark:
    """Texts with and without a nodule; the last two rows repeat the text of the first."""
    rows = [
        (f"train_{n}", f"A nodule of {n} mm." if n % 2 else f"Normal study {n}.", ["Lung nodule"] * (n % 2)) for n in range(n_texts)
    ]
    rows += [("train_x", rows[0][1], []), ("train_y", rows[0][1], [])]
    return load_benchmark("ctrate", ct_rate(path, *rows))


def ids(path: Path) -> list[str]:
    return [json.loads(line)["report_id"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_folds_hold_every_report_once_and_equal_texts_together(tmp_path: Path) -> None:
    benchmark = many(tmp_path / "train.csv")
    made = write_folds(benchmark, tmp_path / "cv", n_folds=4)
    tests = [ids(fold.folder / "corpus" / "test.jsonl") for fold in made]
    assert sorted(i for test in tests for i in test) == sorted(report.report_id for report in benchmark.gold)
    assert [len({"train_0", "train_x", "train_y"} & set(test)) for test in tests].count(3) == 1
    for fold, test in zip(made, tests, strict=True):
        parts = [ids(fold.folder / "corpus" / f"{split}.jsonl") for split in ("train", "dev")]
        assert not set(test) & {i for part in parts for i in part}
        assert len(test) + sum(map(len, parts)) == len(benchmark.gold)
    with pytest.raises(GoldError, match="holds folds already"):
        write_folds(benchmark, tmp_path / "cv", n_folds=4)


def test_a_rare_key_stands_in_dev_and_in_train_of_every_fold(tmp_path: Path) -> None:
    rows = [(f"train_{n}", f"Study {n}.", ["Bronchiectasis"] if n % 10 == 0 else []) for n in range(60)]
    for fold in write_folds(load_benchmark("ctrate", ct_rate(tmp_path / "train.csv", *rows)), tmp_path / "cv", n_folds=3):
        for split in ("train", "dev"):
            lines = (fold.folder / "corpus" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            assert any("bronchiectasis" in json.loads(line)["labels"] for line in lines), (fold.folder.name, split)


def test_training_reads_what_folds_write(tmp_path: Path) -> None:
    from training.corpus import read_annotations
    from training.settings import FinetuneSettings, read_settings

    benchmark = many(tmp_path / "train.csv")
    extra = tmp_path / "more.jsonl"
    row = {"report_id": "own-1", "task": "chest_ct", "text": "A mass in the RUL.", "labels": {"mass": ["rul"]}, "style": "A"}
    extra.write_text(json.dumps(row) + "\n", encoding="utf-8")
    fold = write_folds(benchmark, tmp_path / "cv", n_folds=2, add_training=extra)[0]
    found = read_settings(fold.folder / "finetune.yaml", FinetuneSettings)
    assert (found.corpus, found.weights) == (fold.folder / "corpus", fold.folder / "weights")
    train = read_annotations(fold.folder / "corpus" / "train.jsonl", TASK)
    assert len(train) == fold.n_train
    assert "own-1" in {item.report.report_id for item in train}


def test_keys_without_a_code_are_filled_by_the_rules_for_training_and_not_scored(tmp_path: Path) -> None:
    rows = [*CT_ROWS, ("train_5", "A spiculated mass in the left lower lobe. No nodule.", ["Lung nodule"])]
    benchmark = load_benchmark("ctrate", ct_rate(tmp_path / "train.csv", *rows))
    fold = write_folds(benchmark, tmp_path / "cv", n_folds=1)[0]
    written = [json.loads(line) for split in ("train", "dev") for line in (fold.folder / "corpus" / f"{split}.jsonl").open()]
    (row,) = [row for row in written if row["report_id"] == "train_5"]
    assert row["labels"] == {"nodule": [], "mass": ["lll"]}  # nodule as the set says, whatever the text does
    assert "mass" not in benchmark.scope.keys
    assert not (fold.folder / "corpus" / "test.jsonl").exists()


def test_out_of_fold_answers_come_from_the_weights_that_never_saw_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = many(tmp_path / "train.csv")
    system = TaggingSystem("encoder", settings(task="chest_ct", system="encoder"))
    made = write_folds(benchmark, tmp_path / "cv", n_folds=3)
    with pytest.raises(GoldError, match=r"fold1/weights: does not exist; train it with: radtag train finetune"):
        out_of_fold_answers(system, benchmark, tmp_path / "cv")
    for fold in made:
        (fold.folder / "weights").mkdir()
    used: dict[str, Path | None] = {}

    def answers(trained: TaggingSystem, task: object, gold: list, folder: Path, **_: object) -> SystemAnswers:  # type: ignore[type-arg]
        used.update({report.report_id: trained.settings.encoder for report in gold})
        return SystemAnswers("encoder", tuple(Answer(Labels(r.report_id, {})) for r in gold), states_relations=False)

    monkeypatch.setattr(folds_module, "system_answers", answers)
    found = out_of_fold_answers(system, benchmark, tmp_path / "cv")
    assert [answer.labels.report_id for answer in found.answers if answer.labels] == [r.report_id for r in benchmark.gold]
    for fold in made:
        seen = {*ids(fold.folder / "corpus" / "train.jsonl"), *ids(fold.folder / "corpus" / "dev.jsonl")}
        assert not seen & {report_id for report_id, weights in used.items() if weights == fold.folder / "weights"}
    other = many(tmp_path / "other.csv", n_texts=26)
    with pytest.raises(GoldError, match="are in no fold"):
        out_of_fold_answers(system, other, tmp_path / "cv")


def test_the_command_prints_a_table_its_limits_and_writes_a_report(tmp_path: Path) -> None:
    path = ct_rate(tmp_path / "train.csv", *CT_ROWS)
    done = CliRunner().invoke(
        app, ["benchmark", "ctrate", str(path), "--systems", "published-rules,rules", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    rows = {line.split()[1]: line.split() for line in done.stdout.splitlines() if line.startswith("all ")}
    assert rows["rules"][2:7] == ["4", "0", "100.0", "100.0", "100.0"]
    assert rows["published-rules"][4] == "50.0"  # it reads "no effusion" and "no consolidation" as present
    assert '"Lung opacity" is wider' in done.stdout
    assert (tmp_path / "out" / "all" / "report.html").is_file()
    assert (tmp_path / "out" / "tables" / "ctrate_keys.csv").is_file()


def test_the_negation_table_has_a_line_for_each_reader(tmp_path: Path) -> None:
    path = negex(tmp_path / "negex.txt", NEGEX_ROWS)
    done = CliRunner().invoke(app, ["benchmark", "negex", str(path), "--systems", "rules"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("all") and "rule reader" in line and line.split()[3:9] == ["5", "0", "2", "100.0", "100.0", "100.0"]
        for line in lines
    )
    assert any("keys of chest_ct" in line and " rules " in line for line in lines)
    assert any("2 of 6" in line and "chest_ct" in line for line in lines)


def test_how_the_model_is_read_reaches_the_systems_of_a_benchmark(tmp_path: Path) -> None:
    path = negex(tmp_path / "negex.txt", NEGEX_ROWS)
    for options, said in (
        (["--read", "scores"], "read 'scores' is not known"),
        (["--server", "http://box"], "--server needs --server-model"),
        (["--no-adapter", "--adapter", str(tmp_path)], "do not go with it"),
        (["--server-plain"], "--server-plain goes with --server"),
        (["--http-concurrency", "4"], "--http-concurrency goes with --server"),
    ):
        done = CliRunner().invoke(app, ["benchmark", "negex", str(path), "--systems", "rules,llm", *options])
        assert done.exit_code == 2, done.output
        assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ctrat", "x.csv"], "benchmark 'ctrat' is not known; did you mean 'ctrate'?"),
        (["ctrate", "none.csv"], "none.csv: cannot be read"),
        (["ctrate", "none.csv", "--folds", "5"], "--folds writes training files; give --out DIR"),
        (["negex", "none.txt", "--weights", "cv"], "do not go with it"),
        (["negex", "none.txt", "--adapter", "folder"], "do not go with it"),
    ],
)
def test_usage_errors_are_one_line_and_exit_two(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["benchmark", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is absent")
def test_the_published_files_are_read_whole() -> None:
    ct = load_benchmark("ctrate", SHARED / "ctrate" / "train.csv")
    assert (len(ct.gold), sum("nodule" in report.labels.keys for report in ct.gold)) == (800, 370)
    open_i = load_benchmark("openi", SHARED / "openi" / "indiana_reports_train.csv")
    assert {name: len(places) for name, places in open_i.subsets.items()} == {ALL: 1880, LOCATED: 277, CLEAN: 76}
    sentences, n_left_out = read_negex(SHARED / "negex" / "rsAnnotations-1-120-random.txt", MAPPING.negex)
    assert (len(sentences), n_left_out, sum(s.negated for s in sentences)) == (2376, 0, 491)
    assert sum(bool(s.spans) for s in sentences) == 2365

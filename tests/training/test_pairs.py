"""The pair encoder's examples and training, and the weights folder that it ends in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from configs.schema import Task
from stage1_encoder.pair_encoder import PairEncoder, has_pairs
from stage1_encoder.pairs import PairCut
from stage1_encoder.tokenizer import ReportTokenizer
from training import weights_folder
from training.cli import app
from training.corpus import AnnotatedReport, read_corpus
from training.pairs import PairExamples, value_figures
from training.settings import PairSettings

RUNNER = CliRunner()


@pytest.fixture
def settings(tmp_path: Path, tiny_corpus: Path) -> PairSettings:
    return PairSettings(
        task="tiny",
        corpus=tiny_corpus,
        start=tmp_path,
        weights=tmp_path,
        augmented_share=0.5,
        augmentation={"exchange_entities": 0.5, "typos": 0.5},
        loop={"seed": 5, "epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "head_learning_rate": 1e-3, "patience_epochs": 1},
    )


@pytest.fixture
def reports(tiny_corpus: Path, tiny_task: Task) -> tuple[AnnotatedReport, ...]:
    return read_corpus(tiny_corpus, tiny_task).splits["train"]


@pytest.fixture
def maker(settings: PairSettings, tiny_task: Task, reports: tuple[AnnotatedReport, ...]) -> PairExamples:
    tokenizer = ReportTokenizer.train([item.report.text for item in reports], vocabulary_size=400)
    return PairExamples(tiny_task, PairCut(tokenizer, tiny_task, 32, 8), reports, settings)


def test_every_stated_subject_is_asked_and_its_values_count_only_where_it_is_present(
    maker: PairExamples, reports: tuple[AnnotatedReport, ...], tiny_task: Task
) -> None:
    examples = maker.as_given()
    present = [example for example in examples if example.targets[0] == 1.0]
    assert len(present) == sum(key in item.labels for item in reports for key in ("nodule", "mass"))
    for example in examples:
        # rul, lul and pleural: mentioned ones count whole, others a tenth, none for an absent subject.
        assert set(example.weights[1:]) <= ({1.0, 0.1} if example.targets[0] else {0.0})
        assert example.weights[0] == 1.0
    masses = [example for example in present if example.targets[2] == 1.0]
    assert len(masses) == sum("mass" in item.labels for item in reports)


def test_epochs_have_as_many_examples_and_depend_on_their_number_alone(maker: PairExamples) -> None:
    first, again, second = maker.examples(0), maker.examples(0), maker.examples(1)
    assert len(first) == len(second)
    assert first == again
    assert first != second


def test_figures_count_mentioned_values_of_present_subjects_only(maker: PairExamples) -> None:
    examples = maker.as_given()
    right = np.array([[9.0 if target else -9.0 for target in example.targets] for example in examples])
    assert value_figures(right, examples) == {"average_precision": 1.0, "micro_f1": 1.0}
    ignored = np.array([[weight != 1.0 for weight in example.weights] for example in examples])
    assert value_figures(np.where(ignored, -right, right), examples) == {"average_precision": 1.0, "micro_f1": 1.0}
    assert value_figures(-right, examples)["micro_f1"] < 0.5


@pytest.fixture
def flag_weights(tmp_path: Path, tiny_settings: dict[str, Path]) -> Path:
    """Flag weights, made as a user makes them."""
    runs = tmp_path / "runs"
    for command, start in (("tokenizer", None), ("finetune", "random")):
        config = tiny_settings[command]
        if start is not None:
            content = yaml.safe_load(config.read_text()) | {"start": start}
            config.write_text(yaml.safe_dump(content), encoding="utf-8")
        result = RUNNER.invoke(app, [command, str(config), "--out", str(runs / command)])
        assert result.exit_code == 0, result.output
    return tmp_path / "weights"


@pytest.fixture
def pairs_yaml(tmp_path: Path, tiny_settings: dict[str, Path], flag_weights: Path) -> Path:
    finetuning = yaml.safe_load(tiny_settings["finetune"].read_text())
    content = {
        "task": finetuning["task"],
        "corpus": finetuning["corpus"],
        "start": str(flag_weights),
        "weights": str(flag_weights),
        "loop": finetuning["loop"],
    }
    path = tmp_path / "pairs_tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_training_writes_a_pair_encoder_beside_the_flags_and_goes_on_from_its_checkpoint(
    pairs_yaml: Path, flag_weights: Path, tmp_path: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags_before = (flag_weights / "model.onnx").read_bytes()
    command = ["pairs", str(pairs_yaml), "--out", str(tmp_path / "runs" / "pairs")]
    result = RUNNER.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "micro F1 " in result.output and "Next: radtag train combine" in result.output
    assert has_pairs(flag_weights)
    assert (flag_weights / "model.onnx").read_bytes() == flags_before
    odds = PairEncoder.load(flag_weights, task=tiny_task).read("Nodule in the RUL. No mass.", ["nodule", "mass", "effusion"])
    assert sorted(odds) == ["mass", "nodule"]
    card = (flag_weights / "PAIRS_CARD.md").read_text("utf-8")
    assert "20 annotated reports" in card and "The reports are invented" in card
    before = (flag_weights / "pairs.onnx").read_bytes()
    assert RUNNER.invoke(app, command).exit_code == 0  # finished: exported again, not trained again
    assert (flag_weights / "pairs.onnx").read_bytes() == before

    monkeypatch.setattr(weights_folder, "PACKAGES", (flag_weights,))
    refused = RUNNER.invoke(app, command)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert "pairs.onnx: ships with radtag; name another folder under 'weights'" in refused.output


def test_a_corpus_of_another_task_is_refused_in_one_line(pairs_yaml: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(pairs_yaml.read_text()) | {"task": "chest_ct"}
    pairs_yaml.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = RUNNER.invoke(app, ["pairs", str(pairs_yaml), "--out", str(tmp_path / "x")])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "task 'tiny' is not 'chest_ct'" in result.output


def test_a_folder_with_another_tokenizer_is_refused_before_training(pairs_yaml: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text("{}", encoding="utf-8")
    pairs_yaml.write_text(yaml.safe_dump(yaml.safe_load(pairs_yaml.read_text()) | {"weights": str(other)}), encoding="utf-8")
    result = RUNNER.invoke(app, ["pairs", str(pairs_yaml), "--out", str(tmp_path / "x")])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "tokenizer.json: is another tokenizer than that of `start`" in result.output
    assert (other / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "x").exists()


def test_reports_without_a_value_to_learn_are_refused_in_one_line(pairs_yaml: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    dev = tiny_corpus / "dev.jsonl"
    rows = [json.loads(line) for line in dev.read_text(encoding="utf-8").splitlines()]
    unsaid = [{**row, "text": re.sub("RUL|LUL|[Pp]leural", "lung", row["text"])} for row in rows]
    dev.write_text("".join(json.dumps(row) + "\n" for row in unsaid), encoding="utf-8")
    result = RUNNER.invoke(app, ["pairs", str(pairs_yaml), "--out", str(tmp_path / "x")])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    assert "no dev report mentions a value of a subject that it states" in result.output

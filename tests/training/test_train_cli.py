"""The three commands end to end on a tiny configuration, the way a user runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from configs.schema import Task
from stage1_encoder.checkpoint import latest_checkpoint, load_tensors, save_tensors
from stage1_encoder.encoder import Encoder, default_weights
from stage2_relations import adapter_folder
from training import weights_folder
from training.cli import app
from training.loop import TrainingError
from training.pretrain import start_files

RUNNER = CliRunner()


def _train(command: str, config: Path, out: Path, *flags: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, [command, str(config), "--out", str(out), *flags])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def _change(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}), encoding="utf-8")


@pytest.fixture
def runs(tmp_path: Path, tiny_settings: dict[str, Path]) -> Path:
    runs = tmp_path / "runs"
    code, output = _train("tokenizer", tiny_settings["tokenizer"], runs / "tokenizer")
    assert code == 0, output
    return runs


def test_tokenizer_pretrain_finetune_make_a_working_encoder(
    tmp_path: Path, tiny_settings: dict[str, Path], runs: Path, tiny_task: Task
) -> None:
    code, output = _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")
    assert code == 0, output
    _change(tiny_settings["finetune"], start=str(runs / "pretrain"))
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 0, output
    assert "dev n=10, micro F1 " in output
    weights = tmp_path / "weights"
    assert sorted(path.name for path in weights.iterdir()) == ["MODEL_CARD.md", "config.json", "model.onnx", "tokenizer.json"]
    encoder = Encoder.load(weights, task=tiny_task)
    assert encoder.keys == ("nodule", "mass", "effusion")
    (flags,) = encoder.flag(["No nodule."])
    assert set(flags.probability) == set(encoder.keys)
    card = (weights / "MODEL_CARD.md").read_text()
    assert "20 annotated reports" in card
    assert "(n=10 reports)" in card
    before = {path.name: path.read_bytes() for path in weights.iterdir()}
    code, _ = _train("finetune", tiny_settings["finetune"], runs / "finetune")  # finished: exported again, not trained again
    assert code == 0
    assert {path.name: path.read_bytes() for path in weights.iterdir()} == before


def test_weights_that_ship_are_replaced_only_when_that_is_said(
    tmp_path: Path, tiny_settings: dict[str, Path], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_folder, "PACKAGES", (tmp_path / "weights",))
    assert _train("finetune", tiny_settings["finetune"], runs / "finetune")[0] == 0  # nothing stood there
    before = (tmp_path / "weights" / "model.onnx").stat().st_ino
    code, output = _train("finetune", tiny_settings["finetune"], runs / "again")
    assert (code, output.count("\n")) == (2, 1)
    assert "weights: ships with radtag; name another folder under 'weights' in the settings, or give --replace" in output
    assert (tmp_path / "weights" / "model.onnx").stat().st_ino == before
    assert not (runs / "again").exists()
    assert _train("finetune", tiny_settings["finetune"], runs / "finetune", "--replace")[0] == 0
    assert (tmp_path / "weights" / "model.onnx").stat().st_ino != before


def test_only_what_exists_inside_the_package_ships(tmp_path: Path) -> None:
    for target in (default_weights("chest_ct"), adapter_folder._SHIPPED / "chest_ct" / "combine.json"):
        with pytest.raises(TrainingError, match="ships with radtag"):
            weights_folder.refuse_shipped(target, setting="weights", replace=False)
        weights_folder.refuse_shipped(target, setting="weights", replace=True)
    (tmp_path / "shortcut").symlink_to(default_weights("chest_ct"))
    with pytest.raises(TrainingError, match="ships with radtag"):
        weights_folder.refuse_shipped(tmp_path / "shortcut", setting="weights", replace=False)
    for target in (tmp_path, default_weights("no_such_task")):
        weights_folder.refuse_shipped(target, setting="weights", replace=False)


def test_a_wrong_label_is_one_line_with_file_and_line(tiny_settings: dict[str, Path], tiny_corpus: Path, runs: Path) -> None:
    path = tiny_corpus / "train.jsonl"
    path.write_text(path.read_text().replace('"mass": ["lul"]', '"mas": ["lul"]', 1))
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 2
    assert output.strip().count("\n") == 0
    assert "train.jsonl:3: label 'mas' is not known; did you mean 'mass'?" in output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copis": 3}, "'copis' is not known; did you mean 'copies'?"),
        ({"hint_recall": 2}, "'hint_recall' is 2"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json: file does not exist; `radtag train tokenizer` makes it"),
        ({"start": "nowhere"}, "result.json: file does not exist"),
        ({"corpus": "nowhere"}, "nowhere: is no folder"),
    ],
)
def test_a_wrong_setting_is_one_line(tiny_settings: dict[str, Path], runs: Path, change: dict[str, object], message: str) -> None:
    _change(tiny_settings["finetune"], **change)
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 2
    assert output.strip().count("\n") == 0
    assert message in output


def test_a_changed_configuration_does_not_resume(tiny_settings: dict[str, Path], runs: Path) -> None:
    assert _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")[0] == 0
    _change(tiny_settings["pretrain"], masked_share=0.3)
    code, output = _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")
    assert code == 2
    assert "was made with settings" in output


def test_no_weak_report_of_a_measured_split_is_trained_on(
    tiny_settings: dict[str, Path], runs: Path, weak_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = f"{weak_file}: 4 of 5 reports are left out"
    for command in ("tokenizer", "pretrain"):
        caplog.clear()
        _change(tiny_settings[command], texts=[str(weak_file)])
        code, output = _train(command, tiny_settings[command], runs / f"{command}-weak")
        assert (code, caplog.text.count(told)) == (0, 1), output
        assert command != "tokenizer" or "n_reports 21," in output
    caplog.clear()
    _change(tiny_settings["finetune"], weak_labels={"path": str(weak_file)})
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert (code, caplog.text.count(told)) == (0, 1), output


def test_another_weak_file_under_the_same_name_does_not_resume(tiny_settings: dict[str, Path], runs: Path, weak_file: Path) -> None:
    _change(tiny_settings["finetune"], weak_labels={"path": str(weak_file)})
    assert _train("finetune", tiny_settings["finetune"], runs / "finetune")[0] == 0
    weak_file.write_text(weak_file.read_text("utf-8").replace('"labels": {}', '"labels": {"mass": []}', 1), encoding="utf-8")
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert (code, output.count("\n")) == (2, 1)
    assert "was made with weak_labels " in output


def test_other_starting_weights_under_the_same_name_do_not_resume(tiny_settings: dict[str, Path], runs: Path) -> None:
    assert _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")[0] == 0
    _change(tiny_settings["finetune"], start=str(runs / "pretrain"))
    assert _train("finetune", tiny_settings["finetune"], runs / "finetune")[0] == 0
    best = load_tensors(runs / "pretrain" / "best.safetensors")
    save_tensors(runs / "pretrain" / "best.safetensors", {name: tensor + 1 for name, tensor in best.items()})
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 2
    assert "was made with start_weights " in output


def test_other_glosses_under_the_same_name_are_another_start(tmp_path: Path) -> None:
    glosses = tmp_path / "glosses.yaml"
    hashes = []
    for word in ("nodule", "mass"):
        glosses.write_text(f"결절: {word}\n", encoding="utf-8")
        hashes.append(start_files("minilm", glosses)["glosses"])
    assert hashes[0] != hashes[1]
    assert start_files("minilm", None) == start_files("random", glosses) == {}


def test_a_damaged_checkpoint_is_one_line(tiny_settings: dict[str, Path], runs: Path) -> None:
    assert _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")[0] == 0
    latest = latest_checkpoint(runs / "pretrain")
    assert latest is not None
    (latest / "state.json").write_text("{")
    code, output = _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")
    assert code == 2
    assert "state.json: is damaged" in output


def test_a_full_disk_is_one_line(tiny_settings: dict[str, Path], runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    code, output = _train("pretrain", tiny_settings["pretrain"], runs / "pretrain")
    assert code == 2
    assert "cannot be written: [Errno 28] No space left on device" in output


def test_a_shape_that_no_body_has_is_one_line(tiny_settings: dict[str, Path], runs: Path) -> None:
    settings = yaml.safe_load(tiny_settings["finetune"].read_text())
    _change(tiny_settings["finetune"], shape={**settings["shape"], "width": 30})
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 2
    assert "width is 30; a multiple of heads (4) is expected" in output


def test_windows_that_share_more_than_they_hold_are_one_line(tiny_settings: dict[str, Path], runs: Path) -> None:
    shape = yaml.safe_load(tiny_settings["finetune"].read_text())["shape"]
    _change(tiny_settings["finetune"], overlap_tokens=shape["window_tokens"] - 2)
    code, output = _train("finetune", tiny_settings["finetune"], runs / "finetune")
    assert code == 2
    assert f"windows of {shape['window_tokens']} tokens can share at most {shape['window_tokens'] - 3}" in output

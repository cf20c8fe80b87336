from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema import Task, load_task
from stage1_encoder.encoder import Encoder, EncoderError, default_weights, weights_hash
from stage1_encoder.marks import WindowCut
from stage1_encoder.model import KeyFlagModel
from stage1_encoder.onnx import onnx_logits, read_back, torch_logits
from stage1_encoder.tokenizer import ReportTokenizer

TEXTS = [
    "nodule",
    "No pleural effusion, consolidation or nodule.",
    "좌하엽에 경화 소견. RUL의 nodule이 이전 CT와 비교하여 변화 없음.",
    "",
    "FINDINGS: Ground-glass opacity in both lower lobes. " * 6,
    "1. A 6 mm nodule in the RUL (#3-42), no change.\n2. mass 😀",
]


@pytest.fixture(scope="module")
def encoder(tiny_weights: Path, tiny_task: Task) -> Encoder:
    return Encoder.load(tiny_weights, task=tiny_task)


@given(seed=st.integers(0, 1000), batch=st.integers(1, 6), threads=st.sampled_from([1, 2]))
@settings(max_examples=15, deadline=None)
def test_flags_do_not_depend_on_order_batch_or_threads(
    tiny_weights: Path, tiny_task: Task, encoder: Encoder, seed: int, batch: int, threads: int
) -> None:
    alone = [encoder.flag([text])[0] for text in TEXTS]
    order = list(range(len(TEXTS)))
    random.Random(seed).shuffle(order)
    other = encoder if threads == 1 else Encoder.load(tiny_weights, task=tiny_task, threads=threads)
    flags = [
        flag
        for start in range(0, len(order), batch)
        for flag in other.flag([TEXTS[index] for index in order[start : start + batch]])
    ]
    for index, flag in zip(order, flags, strict=True):
        assert flag.probability == pytest.approx(alone[index].probability, abs=1e-5)
        assert flag.hinted == alone[index].hinted
        assert flag.decided == alone[index].decided


def test_tokens_of_every_window_are_counted_whatever_the_threads(tiny_weights: Path, tiny_task: Task) -> None:
    one, two = (Encoder.load(tiny_weights, task=tiny_task, threads=threads) for threads in (1, 2))
    windows = [window for text in TEXTS for window in one._cut.windows(text)]
    assert len(windows) > len(TEXTS)
    for encoder in (one, two):
        assert encoder.token_counts == {"stage1_read": 0}
        encoder.flag(TEXTS[:2])
        encoder.flag(TEXTS[2:])
        assert encoder.token_counts == {"stage1_read": sum(len(window.ids) for window in windows)}


def test_the_hash_of_weights_is_known_without_loading_them(tiny_weights: Path, encoder: Encoder, tmp_path: Path) -> None:
    assert weights_hash(tiny_weights) == encoder.content_hash
    with pytest.raises(EncoderError, match=r"model.onnx: file does not exist"):
        weights_hash(tmp_path)


def test_a_long_text_has_the_maximum_of_its_windows(
    encoder: Encoder, tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_weights: Path, tiny_task: Task
) -> None:
    text = TEXTS[4]
    windows = WindowCut(tiny_model[1], tiny_task, 24, 6).windows(text)
    assert len(windows) > 2
    by_window = onnx_logits(tiny_weights / "model.onnx", windows, n_marks=3)
    assert encoder.logits([text])[0] == pytest.approx(by_window.max(axis=0), abs=1e-6)


def test_float_onnx_is_torch_and_int8_is_near(
    tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_weights: Path, tiny_task: Task
) -> None:
    model, tokenizer = tiny_model
    windows = [window for text in TEXTS for window in WindowCut(tokenizer, tiny_task, 24, 6).windows(text)]
    assert any(window.marks for window in windows)
    by_torch = torch_logits(model, windows)
    assert by_torch.std() > 0.01
    assert np.abs(onnx_logits(tiny_weights / "float.onnx", windows, n_marks=3) - by_torch).max() < 1e-4
    assert np.abs(onnx_logits(tiny_weights / "model.onnx", windows, n_marks=3) - by_torch).max() < 0.2


@pytest.mark.parametrize("precision", ["float", "model"])
def test_the_logits_of_a_window_are_the_same_bits_after_any_other(
    tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_weights: Path, tiny_task: Task, precision: str
) -> None:
    windows = [window for text in TEXTS for window in WindowCut(tiny_model[1], tiny_task, 24, 6).windows(text)]
    path = tiny_weights / f"{precision}.onnx"
    alone = np.concatenate([onnx_logits(path, [window], n_marks=3) for window in windows])
    backwards = onnx_logits(path, windows[::-1], n_marks=3)[::-1]
    assert (alone == onnx_logits(path, windows, n_marks=3)).all()
    assert (alone == backwards).all()


def test_an_int8_file_read_back_is_the_torch_model_within_the_rounding_of_its_weights(
    tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_weights: Path, tiny_task: Task
) -> None:
    model, tokenizer = tiny_model
    windows = [window for text in TEXTS for window in WindowCut(tokenizer, tiny_task, 24, 6).windows(text)]
    again = read_back(tiny_weights / "model.onnx")
    for name, tensor in model.body.state_dict().items():
        if tensor.ndim == 2 and "embeddings" not in name:
            assert (again.body.state_dict()[name] - tensor).abs().max() <= tensor.abs().max() / 30, name
    assert np.abs(torch_logits(again, windows) - torch_logits(model, windows)).max() < 0.2
    assert np.abs(torch_logits(again, windows) - onnx_logits(tiny_weights / "model.onnx", windows, n_marks=3)).max() < 0.2


def test_no_path_of_the_exporting_machine_is_in_the_model(tiny_weights: Path) -> None:
    content = (tiny_weights / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_no_text_gives_no_flags(encoder: Encoder) -> None:
    assert encoder.flag([]) == []


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_a_missing_file_is_named_with_the_command_that_makes_it(tiny_weights: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    (folder / name).unlink()
    with pytest.raises(EncoderError, match=rf"{name}: file does not exist; `radtag train finetune"):
        Encoder.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_a_cut_file_is_named(tiny_weights: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(EncoderError, match=name):
        Encoder.load(folder)


def test_files_of_two_trainings_are_refused(tiny_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    config = json.loads((folder / "config.json").read_text())
    config["thresholds"]["ggo"] = {"hint": 0.1, "decision": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"gives 3 logits, but config\.json has 4 keys"):
        Encoder.load(folder)


def test_the_tokenizer_of_another_training_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    ReportTokenizer.train(TEXTS, vocabulary_size=400).save(folder / "tokenizer.json")
    with pytest.raises(EncoderError, match=r"tokenizer\.json: is not the tokenizer that config\.json names"):
        Encoder.load(folder)


def test_content_hash_follows_every_file(tiny_weights: Path, tmp_path: Path, encoder: Encoder, tiny_task: Task) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(tiny_weights, folder)
    assert Encoder.load(folder, task=tiny_task).content_hash == encoder.content_hash
    config = json.loads((folder / "config.json").read_text())
    config["thresholds"]["mass"]["hint"] = 0.25
    (folder / "config.json").write_text(json.dumps(config))
    assert Encoder.load(folder, task=tiny_task).content_hash != encoder.content_hash


def test_zero_threads_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(EncoderError, match="threads is 0"):
        Encoder.load(tiny_weights, threads=0)


@pytest.mark.parametrize("task", ["chest_ct", "brain_mri"])
def test_shipped_weights_flag_the_keys_of_their_task(task: str) -> None:
    encoder = Encoder.load(default_weights(task))
    assert encoder.task_name == task
    assert encoder.keys == load_task(task).keys
    (flags,) = encoder.flag(["No change."])
    assert tuple(flags.probability) == encoder.keys
    files = list(default_weights(task).iterdir())
    of_pairs = sum(path.stat().st_size for path in files if path.name.lower().startswith("pairs"))
    assert sum(path.stat().st_size for path in files) - of_pairs < 15e6
    assert 0 < of_pairs < 15e6


def test_weights_of_another_task_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(EncoderError, match="weights of task 'tiny'; their keys are not those of task 'chest_ct'"):
        Encoder.load(tiny_weights, task=load_task("chest_ct"))


def test_a_logit_that_is_no_number_is_an_error_and_never_a_flag(
    tiny_weights: Path, tiny_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Encoder.load(tiny_weights, task=tiny_task)
    monkeypatch.setattr(broken, "_run", lambda window: np.full(len(broken.keys), np.nan, dtype=np.float32))
    with pytest.raises(FloatingPointError, match="no finite number"):
        broken.flag(["A nodule."])

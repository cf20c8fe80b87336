"""The stage-1 benchmark: one run measures both sides on the same weights, and they agree."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.contracts import Report
from configs.schema import load_task
from eval.stage1_speed import PaddedEncoder, measure_stage1
from pipeline.annotations import AnnotatedReport
from stage1_encoder.encoder import Encoder
from stage1_encoder.flags import FlagConfig, KeyThresholds
from stage1_encoder.marks import WindowCut
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx import export_int8
from stage1_encoder.tokenizer import ReportTokenizer

TASK = load_task("brain_mri")
TEXTS = ["Left frontal glioma has grown. No infarct.", "뇌출혈 없음. Old infarct.", "Normal. " * 30, "r/o metastasis, 3 mm"]
SHAPE = EncoderShape(layers=2, width=32, heads=4, feed_forward=64, window_tokens=24)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = ReportTokenizer.train(TEXTS, vocabulary_size=400)
    model = KeyFlagModel(SHAPE, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=len(TASK.keys))
    cut = WindowCut(tokenizer, TASK, 24, 6)
    export_int8(model, folder / "model.onnx", windows=[window for text in TEXTS for window in cut.windows(text)])
    tokenizer.save(folder / "tokenizer.json")
    config = FlagConfig(
        task=TASK.name,
        thresholds={key: KeyThresholds(hint=0.2, decision=0.5) for key in TASK.keys},
        temperature=1.0,
        window_tokens=24,
        overlap_tokens=6,
        trained={"tokenizer": tokenizer.content_hash},
    )
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return folder


def test_both_sides_are_timed_and_agree(weights: Path) -> None:
    dev = [AnnotatedReport(Report("d1", TEXTS[0]), {"glioma": ("progression",)}, None, 1)]
    speed = measure_stage1(TASK, weights, TEXTS, dev, n_runs=2)
    assert (speed.n_texts, speed.n_runs, speed.n_dev) == (4, 2, 1)
    assert speed.speedup == speed.padded_ms / speed.encoder_ms > 0
    assert speed.logit_difference < 0.2
    assert 0 <= speed.encoder_f1 <= 1
    assert speed.tokens_a_text > 10


def test_padding_changes_no_logit(weights: Path) -> None:
    padded = PaddedEncoder(weights, TASK)
    together = padded.logits(TEXTS)
    assert np.abs(together - np.concatenate([padded.logits([text]) for text in TEXTS])).max() < 1e-4
    assert np.abs(together - Encoder.load(weights, task=TASK).logits(TEXTS)).max() < 0.2


def test_without_annotated_reports_f1_is_undefined(weights: Path) -> None:
    assert math.isnan(measure_stage1(TASK, weights, TEXTS[:1], [], n_runs=1).encoder_f1)


def test_no_text_is_an_error(weights: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        measure_stage1(TASK, weights, [], [])


def test_the_number_of_torch_threads_is_put_back(weights: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure_stage1(TASK, weights, TEXTS[:1], [], n_runs=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""A weights folder of a tiny untrained encoder, made once by the code that exports real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stage1_encoder.flags import FlagConfig, KeyThresholds
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx import export_float, quantise
from stage1_encoder.tokenizer import ReportTokenizer

TEXTS = [
    "1. A 6 mm nodule in the RUL (#3-42), no change.\n2. No pleural effusion, consolidation or nodule.",
    "좌하엽에 경화 소견. RUL의 nodule이 이전 CT와 비교하여 변화 없음.",
    "FINDINGS: Ground-glass opacity in both lower lobes. IMPRESSION: r/o pneumonia.",
] * 3
SHAPE = EncoderShape(layers=2, width=32, heads=4, feed_forward=64, window_tokens=24)
KEYS = ("nodule", "mass", "effusion")


@pytest.fixture(scope="session")
def tiny_model() -> tuple[KeyFlagModel, ReportTokenizer]:
    torch.manual_seed(3)
    tokenizer = ReportTokenizer.train(TEXTS, vocabulary_size=500)
    model = KeyFlagModel(SHAPE, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=len(KEYS)).eval()
    with torch.no_grad():
        model.head.weights.normal_(0, 0.5)
    return model, tokenizer


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: tuple[KeyFlagModel, ReportTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = tiny_model
    folder = tmp_path_factory.mktemp("weights")
    export_float(model, folder / "float.onnx", window_tokens=SHAPE.window_tokens)
    quantise(folder / "float.onnx", folder / "model.onnx")
    tokenizer.save(folder / "tokenizer.json")
    config = FlagConfig(
        task="tiny",
        thresholds={key: KeyThresholds(hint=0.2, decision=0.5) for key in KEYS},
        temperature=1.5,
        window_tokens=SHAPE.window_tokens,
        overlap_tokens=6,
        trained={"start": "random", "tokenizer": tokenizer.content_hash},
    )
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return folder

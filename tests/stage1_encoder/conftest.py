"""A weights folder of a tiny untrained encoder, made once by the code that exports real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import Task, load_task
from stage1_encoder.flags import FlagConfig, KeyThresholds
from stage1_encoder.marks import WindowCut
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx import export_float, export_int8
from stage1_encoder.tokenizer import ReportTokenizer

TEXTS = [
    "1. A 6 mm nodule in the RUL (#3-42), no change.\n2. No pleural effusion, consolidation or nodule.",
    "좌하엽에 경화 소견. RUL의 nodule이 이전 CT와 비교하여 변화 없음.",
    "FINDINGS: Ground-glass opacity in both lower lobes. IMPRESSION: r/o pneumonia.",
] * 3
SHAPE = EncoderShape(layers=2, width=32, heads=4, feed_forward=64, window_tokens=24)
KEYS = ("nodule", "mass", "effusion")
TASK = """
task: tiny
title: Tiny task of the tests
entities:
  nodule: {label: nodule, keywords: {en: ['nodules?'], ko: ['결절']}}
  mass: {label: mass, keywords: {en: ['mass(?:es)?']}}
  effusion: {label: effusion, keywords: {en: ['(?:pleural )?effusions?']}}
values:
  rul: {label: RUL, keywords: {en: ['RUL']}}
steps:
  - name: lesions
    kind: relation
    heading: Target Lesions
    instruction: Say where each lesion is.
    subjects: [nodule, mass, effusion]
    values: [rul]
    examples:
      - {report: Nodule in the RUL., hints: [nodule], answer: {nodule: [rul]}}
"""


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("task") / "tiny.yaml"
    path.write_text(TASK, encoding="utf-8")
    return load_task(path)


@pytest.fixture(scope="session")
def tiny_model() -> tuple[KeyFlagModel, ReportTokenizer]:
    torch.manual_seed(3)
    tokenizer = ReportTokenizer.train(TEXTS, vocabulary_size=500)
    model = KeyFlagModel(SHAPE, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=len(KEYS)).eval()
    with torch.no_grad():
        model.head.weights.normal_(0, 0.5)
        model.head.mention_weights.normal_(0, 0.5)
        model.mark_embeddings.normal_(0, 0.5)
    return model, tokenizer


@pytest.fixture(scope="session")
def tiny_weights(
    tiny_model: tuple[KeyFlagModel, ReportTokenizer], tiny_task: Task, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    model, tokenizer = tiny_model
    folder = tmp_path_factory.mktemp("weights")
    cut = WindowCut(tokenizer, tiny_task, SHAPE.window_tokens, 6)
    export_float(model, folder / "float.onnx")
    export_int8(model, folder / "model.onnx", windows=[window for text in TEXTS for window in cut.windows(text)])
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

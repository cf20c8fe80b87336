"""A task of three keys and a corpus of a few dozen short reports, small enough to train on in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from configs.schema import Task, load_task

TASK = """
task: tiny
title: Tiny task of the tests
entities:
  nodule: {label: nodule, keywords: {en: ['nodules?'], ko: ['결절']}}
  mass: {label: mass, keywords: {en: ['mass(?:es)?'], ko: ['종괴']}}
  effusion: {label: effusion, values: [pleural], implied: [pleural], keywords: {en: ['effusions?'], ko: ['흉수']}}
values:
  rul: {label: RUL, keywords: {en: ['RUL']}, side: right}
  lul: {label: LUL, keywords: {en: ['LUL']}, side: left}
  pleural: {label: pleural, keywords: {en: ['pleural']}}
steps:
  - name: lesions
    kind: relation
    heading: Target Lesions
    instruction: Say where each lesion is.
    subjects: [nodule, mass, effusion]
    values: [rul, lul, pleural]
    examples:
      - report: Nodule in the RUL.
        hints: [nodule]
        answer: {nodule: [rul]}
"""
PRESENT = {
    "nodule": ["6 mm nodule in the RUL.", "RUL 결절 보임.", "Nodule, LUL, no change."],
    "mass": ["A mass in the LUL.", "LUL 종괴.", "3 cm mass, RUL."],
    "effusion": ["Pleural effusion.", "흉수 소량.", "Small pleural effusion on the right."],
}
ABSENT = {"nodule": "No nodule.", "mass": "종괴 없음.", "effusion": "No pleural effusion."}
VALUES = {"nodule": [], "mass": ["lul"], "effusion": ["pleural"]}


def tiny_reports(n_reports: int, *, prefix: str) -> list[dict[str, object]]:
    """Reports that state every subset of the keys in turn, negating the others."""
    reports = []
    for number in range(n_reports):
        present = [key for bit, key in enumerate(PRESENT) if (number >> bit) & 1]
        lines = [PRESENT[key][number % 3] if key in present else ABSENT[key] for key in PRESENT]
        reports.append(
            {
                "report_id": f"{prefix}-{number:03d}",
                "task": "tiny",
                "patient_id": f"{prefix}-P{number:03d}",
                "text": "\n".join(lines[number % 3 :] + lines[: number % 3]),
                "labels": {key: VALUES[key] for key in present},
            }
        )
    return reports


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_task_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TASK, encoding="utf-8")
    return path


@pytest.fixture
def tiny_task(tiny_task_file: Path) -> Task:
    return load_task(tiny_task_file)


@pytest.fixture
def weak_file(tmp_path: Path, tiny_corpus: Path) -> Path:
    """Five reports of an archive: one is free; the others have an id, a patient or a text of a measured split."""
    write_jsonl(tiny_corpus / "test.jsonl", tiny_reports(9, prefix="s")[8:])
    write_jsonl(tiny_corpus / "test_hard.jsonl", tiny_reports(8, prefix="h")[7:])
    as_in_dev = str(tiny_reports(4, prefix="d")[3]["text"])
    texts = {
        ("a-1", "A-P1"): "Mass in the LUL, archive.",
        ("d-002", "A-P2"): "Nodule, archive.",
        ("a-3", "s-P008"): "결절 보임, archive.",
        ("a-4", "A-P4"): as_in_dev.replace("\n", "  \r\n"),
        ("a-5", "h-P007"): "Pleural effusion, archive.",
    }
    rows = [{"report_id": name, "patient_id": patient, "text": text} for (name, patient), text in texts.items()]
    return write_jsonl(tmp_path / "weak.jsonl", [{**row, "task": "tiny", "labels": {}, "source": "weak"} for row in rows])


@pytest.fixture
def tiny_corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    write_jsonl(folder / "train.jsonl", tiny_reports(20, prefix="t"))
    write_jsonl(folder / "dev.jsonl", tiny_reports(10, prefix="d"))
    return folder


@pytest.fixture
def tiny_settings(tmp_path: Path, tiny_task_file: Path, tiny_corpus: Path) -> dict[str, Path]:
    """YAML files of the three commands; runs go to tmp_path/runs."""
    shape = {"layers": 2, "width": 32, "heads": 4, "feed_forward": 64, "window_tokens": 32, "dropout": 0.1}
    loop = {
        "seed": 5,
        "epochs": 3,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "head_learning_rate": 5e-3,
        "patience_epochs": 3,
        "checkpoint_every_steps": 2,
        "device": "cpu",
        "bf16": False,
    }
    corpora = {str(tiny_task_file): str(tiny_corpus)}
    tokenizer = tmp_path / "runs" / "tokenizer"
    files = {
        "tokenizer": {"corpora": corpora, "vocabulary_size": 400},
        "pretrain": {
            "corpora": corpora,
            "tokenizer": str(tokenizer / "tokenizer.json"),
            "start": "random",
            "shape": shape,
            "loop": loop,
        },
        "finetune": {
            "task": str(tiny_task_file),
            "corpus": str(tiny_corpus),
            "tokenizer": str(tokenizer / "tokenizer.json"),
            "start": "random",
            "weights": str(tmp_path / "weights"),
            "overlap_tokens": 8,
            "copies": 2,
            "augmentation": {
                "exchange_entities": 0.5,
                "join_reports": 0.3,
                "add_statements": 0.3,
                "typos": 0.3,
                "change_case": 0.2,
            },
            "shape": shape,
            "loop": loop,
        },
    }
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(content), encoding="utf-8")
    return paths

"""The shipped corpus keeps its promises: readable, labelled in the ontology, splits apart, its card's counts true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from configs.schema import load_task
from training.corpus import read_annotations

CORPUS = Path(__file__).resolve().parents[2] / "training" / "corpus"
TASKS = ("chest_ct", "brain_mri")
SPLITS = ("train", "dev", "test", "test_hard", "test_fresh", "test_sealed")


def reports(task: str, split: str):  # type: ignore[no-untyped-def]
    return read_annotations(CORPUS / task / f"{split}.jsonl", load_task(task))


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_patient_no_author_and_no_text(task: str) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for item in reports(task, split):
            author = item.report.report_id.split("-")[0]
            for mark in (f"patient {item.report.patient_id}", f"author {author}", item.report.text):
                assert seen.setdefault(mark, split) == split


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_near_duplicate(task: str) -> None:
    """Jaccard index of character 5-grams; all pairs at once as a sparse product."""
    texts = [(split, item.report.report_id, item.report.text) for split in SPLITS for item in reports(task, split)]
    columns: dict[str, int] = {}
    rows: list[int] = []
    found: list[int] = []
    for row, (_, _, text) in enumerate(texts):
        plain = " ".join(text.lower().split())
        shingles = {columns.setdefault(plain[i : i + 5], len(columns)) for i in range(len(plain) - 4)}
        rows += [row] * len(shingles)
        found += shingles
    holds = csr_array((np.ones(len(rows), dtype=np.int32), (rows, found)), shape=(len(texts), len(columns)))
    common = (holds @ holds.T).toarray()
    sizes = common.diagonal()
    jaccard = common / (sizes[:, None] + sizes[None, :] - common)
    splits = np.array([split for split, _, _ in texts])
    near = np.argwhere((jaccard > 0.5) & (splits[:, None] != splits[None, :]))
    assert [(texts[a][1], texts[b][1]) for a, b in near if a < b] == []


@pytest.mark.parametrize("task", TASKS)
def test_every_key_and_value_of_the_task_occurs_in_every_split(task: str) -> None:
    loaded = load_task(task)
    for split in SPLITS:
        labels = [item.labels for item in reports(task, split)]
        assert {key for label in labels for key in label} == set(loaded.keys)
        assert {value for label in labels for values in label.values() for value in values} == set(loaded.values)


def test_the_card_says_how_many_reports_each_split_has() -> None:
    card = (CORPUS / "README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        row = re.search(rf"^\| {split} \| (\d+) \|[^|]*\| (\d+) \|", card, re.MULTILINE)
        assert row is not None
        assert [int(row[1]), int(row[2])] == [len(reports(task, split)) for task in TASKS]


def test_the_card_says_who_wrote_and_who_did_not_review() -> None:
    card = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert "authored by language models" in card
    assert "reviewed by no radiologist" in card
    assert "CC BY 4.0" in card

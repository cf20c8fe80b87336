"""What the pair encoder is asked, and what it gives back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Task, load_task
from stage1_encoder.encoder import EncoderError
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx import export_float, export_int8, onnx_logits, read_back, torch_logits
from stage1_encoder.pair_encoder import PAIRS_CONFIG_FILE, PAIRS_FILE, PairConfig, PairEncoder, has_pairs, pairs_hash
from stage1_encoder.pairs import PairColumns, PairCut
from stage1_encoder.tokenizer import ReportTokenizer
from stage2_relations.model_file import file_sha256

SHAPE = EncoderShape(layers=2, width=32, heads=4, feed_forward=64, window_tokens=24)
TEXTS = ["A 6 mm nodule in the RUL, no change. A mass.", "RUL mass; no nodule.", "Effusion.", "Normal."]


@pytest.fixture(scope="module")
def pair_task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Two lesions with two values, and an effusion whose only value is implied."""
    path = tmp_path_factory.mktemp("task") / "pairs.yaml"
    path.write_text(
        """
task: pairs
title: Pairs
entities:
  nodule: {label: nodule, keywords: {en: ['nodules?']}}
  mass: {label: mass, values: [rul], keywords: {en: ['mass(?:es)?']}}
  effusion: {label: effusion, values: [pleural], implied: [pleural], keywords: {en: ['effusions?']}}
values:
  rul: {label: RUL, keywords: {en: ['RUL']}}
  lul: {label: LUL, keywords: {en: ['LUL']}}
  pleural: {label: pleural, keywords: {en: ['pleural']}}
steps:
  - name: lesions
    kind: relation
    heading: Target Lesions
    instruction: Say where each lesion is.
    subjects: [nodule, mass, effusion]
    values: [rul, lul, pleural]
    examples:
      - {report: Nodule in the RUL., hints: [nodule], answer: {nodule: [rul]}}
""",
        encoding="utf-8",
    )
    return load_task(path)


@pytest.fixture(scope="module")
def cut(pair_task: Task) -> PairCut:
    return PairCut(ReportTokenizer.train(TEXTS * 3, vocabulary_size=400), pair_task, SHAPE.window_tokens, 6)


@pytest.fixture(scope="module")
def model(cut: PairCut) -> KeyFlagModel:
    torch.manual_seed(4)
    columns, tokenizer = cut.columns, cut.tokenizer
    made = KeyFlagModel(
        SHAPE,
        vocabulary_size=tokenizer.vocabulary_size,
        pad_id=tokenizer.pad_id,
        n_keys=columns.n_logits,
        n_marks=columns.n_marks,
    ).eval()
    with torch.no_grad():
        for parameter in (made.head.weights, made.head.mention_weights, made.mark_embeddings):
            parameter.normal_(0, 0.5)
    return made


@pytest.fixture
def folder(tmp_path: Path, cut: PairCut, model: KeyFlagModel) -> Path:
    windows = [window for text in TEXTS for found in cut.windows(text, ["nodule", "mass"]).values() for window in found]
    export_int8(model, tmp_path / PAIRS_FILE, windows=windows)
    cut.tokenizer.save(tmp_path / "tokenizer.json")
    config = PairConfig(
        task="pairs",
        subjects={key: list(values) for key, values in cut.columns.subjects.items()},
        values=list(cut.columns.values),
        window_tokens=SHAPE.window_tokens,
        overlap_tokens=6,
        trained={"tokenizer": cut.tokenizer.content_hash, "model": file_sha256(tmp_path / PAIRS_FILE)},
    )
    (tmp_path / PAIRS_CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    return tmp_path


def test_a_subject_without_values_of_its_own_is_not_asked(pair_task: Task) -> None:
    columns = PairColumns.of(pair_task)
    assert dict(columns.subjects) == {"nodule": ("rul", "lul", "pleural"), "mass": ("rul",)}
    assert (columns.n_logits, columns.n_marks) == (4, 7)
    brain = PairColumns.of(load_task("brain_mri"))
    assert list(brain.subjects) == ["glioma", "lymphoma", "metastasis"]
    assert brain.values == ("progression", "stable", "improvement")
    assert "pleural_effusion" not in PairColumns.of(load_task("chest_ct")).subjects


def test_marks_say_who_is_asked_and_whose_mention_is_whose(cut: PairCut) -> None:
    text = "RUL mass; no nodule."
    spans = cut.tokenizer.encode(text).spans

    def marked(subject: str) -> dict[int, str]:
        (window,) = cut.windows(text, [subject])[subject]
        words: dict[int, str] = {}
        for position, column in window.marks:
            span = spans[position - 1]
            words[column] = words.get(column, "") + ("[CLS]" if position == 0 else text[span.start : span.end])
        return words

    columns = cut.columns
    by_mass, by_nodule = marked("mass"), marked("nodule")
    assert by_mass[columns.asked("mass")] == by_nodule[columns.asked("nodule")] == "[CLS]"
    assert columns.asked("nodule") not in by_mass
    assert by_mass[0].strip() == by_nodule[columns.n_logits].strip() == "mass"
    assert by_nodule[0].strip() == by_mass[columns.n_logits].strip() == "nodule"
    assert by_mass[columns.value("rul")].strip() == by_nodule[columns.value("rul")].strip() == "RUL"


def test_a_long_report_is_asked_about_in_windows_that_keep_their_marks(cut: PairCut) -> None:
    windows = cut.windows("Normal. " * 40 + "Nodule in the RUL.", ["nodule"])["nodule"]
    assert len(windows) > 1
    assert all(window.marks[0] == (0, cut.columns.asked("nodule")) for window in windows)
    assert any(column == cut.columns.value("rul") for _, column in windows[-1].marks)


def test_onnx_gives_what_torch_gives_and_int8_stays_near(cut: PairCut, model: KeyFlagModel, folder: Path, tmp_path: Path) -> None:
    windows = [window for text in TEXTS for found in cut.windows(text, ["nodule", "mass"]).values() for window in found]
    export_float(model, tmp_path / "float.onnx")
    by_torch = torch_logits(model, windows)
    assert by_torch.shape == (8, 4)
    assert np.abs(onnx_logits(tmp_path / "float.onnx", windows, n_marks=7) - by_torch).max() < 1e-4
    assert np.abs(onnx_logits(folder / PAIRS_FILE, windows, n_marks=7) - by_torch).max() < 0.3
    assert np.abs(torch_logits(read_back(folder / PAIRS_FILE), windows) - by_torch).max() < 0.3


def test_odds_are_given_by_subject_and_for_its_own_values_only(folder: Path, pair_task: Task, cut: PairCut) -> None:
    encoder = PairEncoder.load(folder, task=pair_task)
    odds = encoder.read(TEXTS[0], ["mass", "effusion", "nodule"])
    assert {subject: list(said) for subject, said in odds.items()} == {"mass": ["rul"], "nodule": ["rul", "lul", "pleural"]}
    assert odds["nodule"]["rul"] != odds["mass"]["rul"]
    (window,) = cut.windows(TEXTS[0], ["mass"])["mass"]
    row = onnx_logits(folder / PAIRS_FILE, [window], n_marks=7)[0]
    assert odds["mass"]["rul"] == row[1]
    assert encoder.token_counts["stage1_pairs_read"] == 2 * len(window.ids)
    assert encoder.read("Effusion.", ["effusion"]) == {}


def test_the_same_question_has_the_same_answer_in_any_company(folder: Path, pair_task: Task) -> None:
    encoder = PairEncoder.load(folder, task=pair_task)
    together = encoder.read(TEXTS[1], ["nodule", "mass"])
    assert all(encoder.read(TEXTS[1], [subject])[subject] == said for subject, said in together.items())


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (PAIRS_CONFIG_FILE, '"format_version": 1', '"format_version": 2', "pairs.json: format_version"),
        (PAIRS_CONFIG_FILE, '"pairs"', '"pairs', "pairs.json: content"),
        (PAIRS_CONFIG_FILE, '"nodule"', '"nodul"', "are not those of task 'pairs'"),
        (PAIRS_CONFIG_FILE, '"values": [\n  "rul",\n  "lul"', '"values": [\n  "lul",\n  "rul"', "are not those of task 'pairs'"),
        (PAIRS_CONFIG_FILE, '"tokenizer": "', '"tokenizer": "0', "is not the tokenizer that pairs.json names"),
        (PAIRS_CONFIG_FILE, '"model": "', '"model": "0', "is not the model that pairs.json names"),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    folder: Path, pair_task: Task, name: str, old: str, new: str, message: str
) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(EncoderError, match=message.replace(".", r"\.")):
        PairEncoder.load(folder, task=pair_task)


def test_a_missing_file_says_which_command_makes_it(folder: Path, pair_task: Task) -> None:
    (folder / PAIRS_CONFIG_FILE).unlink()
    with pytest.raises(EncoderError, match=r"`radtag train pairs CONFIG\.yaml` makes it"):
        PairEncoder.load(folder, task=pair_task)


def test_the_hash_follows_every_file_that_decides(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = pairs_hash(folder)
    other = tmp_path_factory.mktemp("other") / "weights"
    shutil.copytree(folder, other)
    assert pairs_hash(other) == before
    config = json.loads((other / PAIRS_CONFIG_FILE).read_text(encoding="utf-8"))
    (other / PAIRS_CONFIG_FILE).write_text(json.dumps({**config, "overlap_tokens": 5}), encoding="utf-8")
    assert pairs_hash(other) != before
    (other / PAIRS_FILE).unlink()
    assert (has_pairs(other), pairs_hash(other)) == (False, None)

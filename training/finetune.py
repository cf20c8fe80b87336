"""`radtag train finetune`: body → flags of one task → int8 ONNX weights with thresholds, checked and described."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import Task, load_task
from stage1_encoder.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder
from stage1_encoder.flags import CONFIG_FILE, FlagConfig, KeyThresholds
from stage1_encoder.marks import WindowCut
from stage1_encoder.model import KeyFlagModel
from stage1_encoder.onnx import export_float, export_int8, onnx_logits, torch_logits
from stage1_encoder.tokenizer import ReportTokenizer
from stage2_relations.model_file import file_sha256
from training.corpus import AnnotatedReport, Corpus, read_corpus
from training.flag_examples import ExampleMaker, FlagExample, targets_of, weak_texts
from training.held_out import NOTHING, HeldOut
from training.loop import LoopResult, Progress, TrainingError, train
from training.model_card import CARD_FILE, CardFigures, model_card
from training.pretrain import settings_hash, start_files
from training.settings import FinetuneSettings
from training.starting_weights import load_start
from training.thresholds import Array, choose_thresholds, fit_temperature, key_figures, tempered
from training.weights_folder import put_in_place
from training.windows_batch import logits_by_length, longest_window_tokens, report_logits

# Largest difference of a logit between torch and float32 ONNX that is still rounding.
ONNX_TOLERANCE = 1e-3
# Micro F1 on dev that int8 may cost.
INT8_F1_TOLERANCE = 0.01
LARGEST_WEIGHT = 5.0
# Training reports, evenly spaced, that say how large the inputs of int8 layers get.
CALIBRATION_REPORTS = 150


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """The run and what its exported weights reach on dev."""

    loop: LoopResult
    figures: CardFigures
    warnings: Sequence[str]


class FlagLearner:
    """A Learner: binary cross-entropy on logits, the maximum over a report's windows; dev score = micro average precision."""

    def __init__(
        self,
        model: KeyFlagModel,
        maker: ExampleMaker,
        dev: Sequence[FlagExample],
        *,
        pad_id: int,
        positive_weights: Tensor | None,
        label_smoothing: float,
    ) -> None:
        self.model: nn.Module = model
        self._model, self._maker, self._dev, self._pad_id = model, maker, dev, pad_id
        self._positive_weights, self._smoothing = positive_weights, label_smoothing
        self._dev_targets = np.array([example.targets for example in dev])

    def examples(self, epoch: int) -> Sequence[FlagExample]:
        return self._maker.examples(epoch)

    def n_tokens(self, example: FlagExample) -> int:
        return longest_window_tokens(example.windows)

    def loss(self, batch: Sequence[FlagExample], device: torch.device) -> Tensor:
        logits = self._logits(batch, device)
        targets = torch.tensor([example.targets for example in batch], device=device)
        targets = targets * (1 - 2 * self._smoothing) + self._smoothing
        weights = torch.tensor([example.weight for example in batch], device=device)[:, None]
        positive = None if self._positive_weights is None else self._positive_weights.to(device)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, weight=weights, pos_weight=positive, reduction="none")
        return losses.mean()

    def evaluate(self, device: torch.device) -> dict[str, float]:
        logits = logits_by_length(self._model, [example.windows for example in self._dev], pad_id=self._pad_id, device=device)
        loss = functional.binary_cross_entropy_with_logits(
            torch.tensor(logits), torch.tensor(self._dev_targets, dtype=torch.float32)
        )
        at_half = key_figures(logits > 0, self._dev_targets)
        return {
            "score": float(average_precision_score(self._dev_targets.ravel(), logits.ravel())),
            "dev_loss": float(loss),
            "dev_micro_f1": at_half["micro_f1"],
            "dev_macro_f1": at_half["macro_f1"],
            "dev_exact_set": at_half["exact_set"],
        }

    def _logits(self, batch: Sequence[FlagExample], device: torch.device) -> Tensor:
        return report_logits(self._model, [example.windows for example in batch], pad_id=self._pad_id, device=device)


def finetune(settings: FinetuneSettings, folder: Path, *, progress: Callable[[Progress], None]) -> FinetuneResult:
    """Trains in `folder`, then writes the weights folder of the settings.

    Raises:
        ConfigError, CorpusError, TokenizerError, TrainingError, CheckpointError, TrainingStopped
    """
    task = load_task(settings.task)
    tokenizer = ReportTokenizer.load(settings.tokenizer)
    corpus = read_corpus(settings.corpus, task)
    shape = settings.shape.shape()
    cut = WindowCut(tokenizer, task, shape.window_tokens, settings.overlap_tokens)
    torch.set_num_threads(settings.loop.threads)
    torch.manual_seed(settings.loop.seed)
    model = KeyFlagModel(shape, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, n_keys=len(task.keys))
    start = load_start(
        model, settings.start, tokenizer, glosses=settings.glosses, seed=settings.loop.seed, task_file=task.content_hash
    )
    held_out = HeldOut.of([settings.corpus]) if settings.weak_labels else NOTHING
    learner = _learner(settings, model, cut, corpus, held_out)
    fingerprint = {
        "kind": "flags",
        "task": task.name,
        "start": start,
        "task_file": task.content_hash,
        "tokenizer": tokenizer.content_hash,
        "corpus": corpus.content_hash,
        "settings": settings_hash(settings),
        **start_files(settings.start, settings.glosses),
    }
    if settings.weak_labels is not None:
        fingerprint |= {"weak_labels": file_sha256(settings.weak_labels.path), "held_out": held_out.content_hash}
    result = train(learner, settings.loop, folder, fingerprint=fingerprint, progress=progress)
    model.load_state_dict(dict(result.best))
    figures = export(model, cut, corpus, settings, fingerprint=fingerprint, loop=result)
    return FinetuneResult(result, figures, corpus.warnings)


def _learner(settings: FinetuneSettings, model: KeyFlagModel, cut: WindowCut, corpus: Corpus, held_out: HeldOut) -> FlagLearner:
    weak = settings.weak_labels
    maker = ExampleMaker(
        corpus.task,
        cut,
        corpus.splits["train"],
        settings.augmentation,
        copies=settings.copies,
        seed=settings.loop.seed,
        weak=weak_texts(weak.path, corpus.task, held_out) if weak else (),
        weak_weight=weak.weight if weak else 0.0,
    )
    return FlagLearner(
        model,
        maker,
        [FlagExample(cut.windows(item.report.text), targets_of(item.labels, corpus.task), 1.0) for item in corpus.splits["dev"]],
        pad_id=cut.tokenizer.pad_id,
        positive_weights=_positive_weights(corpus) if settings.positive_weighting == "sqrt" else None,
        label_smoothing=settings.label_smoothing,
    )


def export(
    model: KeyFlagModel,
    cut: WindowCut,
    corpus: Corpus,
    settings: FinetuneSettings,
    *,
    fingerprint: dict[str, str],
    loop: LoopResult,
) -> CardFigures:
    """Exports, compares torch, float32 ONNX and int8 ONNX on every dev report, calibrates on what is shipped, writes the folder.

    Raises:
        TrainingError: ONNX is not torch, or int8 costs more than 0.01 micro F1. The weights folder is then untouched.
    """
    task, dev = corpus.task, corpus.splits["dev"]
    target = settings.weights
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        float_path = building / "float.onnx"
        export_float(model, float_path)
        export_int8(
            model,
            building / MODEL_FILE,
            windows=[window for item in calibration_reports(corpus) for window in cut.windows(item.report.text)],
        )
        texts = [item.report.text for item in dev]
        windows = [window for text in texts for window in cut.windows(text)]
        by_torch, by_float, by_int8 = (
            torch_logits(model, windows),
            onnx_logits(float_path, windows, n_marks=len(task.keys)),
            onnx_logits(building / MODEL_FILE, windows, n_marks=len(task.keys)),
        )
        check_float(by_torch, by_float)
        targets = np.array([targets_of(item.labels, task) for item in dev]).astype(bool)
        owners = [row for row, text in enumerate(texts) for _ in cut.windows(text)]
        float_logits, int8_logits = report_maxima(by_float, owners), report_maxima(by_int8, owners)
        float_f1 = key_figures(float_logits > 0, targets)["micro_f1"]
        int8_f1 = key_figures(int8_logits > 0, targets)["micro_f1"]
        check_int8(float_f1=float_f1, int8_f1=int8_f1)
        float_path.unlink()
        cut.tokenizer.save(building / TOKENIZER_FILE)
        config = _calibrated(int8_logits, targets, task, cut, settings, fingerprint)
        (building / CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        figures = measure(
            building, dev, task, loop, float_f1=float_f1, int8_f1=int8_f1, logit_loss=float(np.abs(by_int8 - by_float).max())
        )
        (building / CARD_FILE).write_text(model_card(config, figures, corpus, settings), encoding="utf-8")
        put_in_place(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return figures


def check_float(by_torch: Array, by_float: Array) -> None:
    """Raises TrainingError where float32 ONNX gives other logits than torch."""
    if (apart := float(np.abs(by_torch - by_float).max())) > ONNX_TOLERANCE:
        raise TrainingError(f"ONNX differs from torch by {apart:.2g} in a logit; at most {ONNX_TOLERANCE} is expected")


def check_int8(*, float_f1: float, int8_f1: float) -> None:
    """Raises TrainingError where int8 costs more micro F1 on dev than it may."""
    if int8_f1 < float_f1 - INT8_F1_TOLERANCE:
        raise TrainingError(
            f"int8 lowers micro F1 on dev from {float_f1:.3f} to {int8_f1:.3f}; at most {INT8_F1_TOLERANCE} is expected"
        )


def measure(
    weights: Path,
    dev: Sequence[AnnotatedReport],
    task: Task,
    loop: LoopResult,
    *,
    float_f1: float,
    int8_f1: float,
    logit_loss: float,
) -> CardFigures:
    """Dev figures of a weights folder, through the same Encoder that tags an archive."""
    flags = Encoder.load(weights, task=task).flag([item.report.text for item in dev])
    targets = np.array([targets_of(item.labels, task) for item in dev]).astype(bool)
    decided = np.array([targets_of(item.decided, task) for item in flags]).astype(bool)
    hinted = np.array([targets_of(item.hinted, task) for item in flags]).astype(bool)
    return CardFigures(
        n_dev=len(dev),
        decision=key_figures(decided, targets),
        hint=key_figures(hinted, targets),
        per_key={
            key: (int(targets[:, column].sum()), *_per_key(decided[:, column], hinted[:, column], targets[:, column]))
            for column, key in enumerate(task.keys)
        },
        float_f1=float_f1,
        int8_f1=int8_f1,
        int8_logit_difference=logit_loss,
        best_epoch=loop.best_epoch,
        training_s=loop.seconds_s,
    )


def _per_key(decided: Array, hinted: Array, present: Array) -> tuple[float, float]:
    return key_figures(decided[:, None], present[:, None])["micro_f1"], key_figures(hinted[:, None], present[:, None])["recall"]


def _calibrated(
    logits: Array, targets: Array, task: Task, cut: WindowCut, settings: FinetuneSettings, fingerprint: dict[str, str]
) -> FlagConfig:
    temperature = fit_temperature(logits, targets)
    thresholds: dict[str, KeyThresholds] = choose_thresholds(
        tempered(logits, temperature), targets, task.keys, hint_recall=settings.hint_recall
    )
    return FlagConfig(
        task=task.name,
        thresholds=thresholds,
        temperature=temperature,
        window_tokens=cut.window_tokens,
        overlap_tokens=cut.overlap_tokens,
        trained=fingerprint,
    )


def calibration_reports(corpus: Corpus) -> Sequence[AnnotatedReport]:
    """About CALIBRATION_REPORTS training reports, evenly spaced."""
    train = corpus.splits["train"]
    return train[:: max(1, len(train) // CALIBRATION_REPORTS)]


def report_maxima(logits: Array, owners: Sequence[int]) -> Array:
    """[reports, keys]: the maximum over the windows (rows of `logits`) that `owners` says are of one report, in order."""
    starts = [index for index, owner in enumerate(owners) if index == 0 or owner != owners[index - 1]]
    maxima: Array = np.maximum.reduceat(logits, starts, axis=0)
    return maxima


def _positive_weights(corpus: Corpus) -> Tensor:
    targets = torch.tensor([targets_of(item.labels, corpus.task) for item in corpus.splits["train"]])
    present = targets.sum(dim=0)
    return ((len(targets) - present) / present).sqrt().clamp(1.0, LARGEST_WEIGHT)

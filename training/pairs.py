"""`radtag train pairs`: stage 1's body → which value is which subject's, as int8 ONNX weights beside the flags'."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from configs.loose import loose_value_mentions
from configs.mentions import entity_mentions, value_mentions
from configs.schema import Task, load_task
from stage1_encoder.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder, weights_hash
from stage1_encoder.flags import CONFIG_FILE, FlagConfig
from stage1_encoder.marks import MarkedWindow
from stage1_encoder.model import EncoderShape, KeyFlagModel
from stage1_encoder.onnx import export_float, export_int8, onnx_logits, read_back, torch_logits
from stage1_encoder.pair_encoder import PAIRS_CONFIG_FILE, PAIRS_FILE, PairConfig
from stage1_encoder.pairs import PairColumns, PairCut
from stage1_encoder.tokenizer import ReportTokenizer
from stage2_relations.model_file import file_sha256
from training.augment import LabelledText, SurfaceForms
from training.corpus import AnnotatedReport, Corpus, read_corpus
from training.finetune import calibration_reports, check_float, check_int8, report_maxima
from training.flag_examples import augmented
from training.loop import LoopResult, Progress, TrainingError, train
from training.model_card import PAIRS_CARD_FILE, pairs_card
from training.pretrain import settings_hash
from training.settings import PairSettings
from training.thresholds import Array, key_figures
from training.windows_batch import logits_by_length, longest_window_tokens, report_logits


@dataclass(frozen=True, slots=True)
class PairExample:
    """The windows of a report for one subject; 0 or 1 for each logit, and the weight of each one's loss."""

    windows: tuple[MarkedWindow, ...]
    targets: tuple[float, ...]
    weights: tuple[float, ...]


class PairExamples:
    """Draws an epoch's examples: every subject that a report states, and a share of those that it only names."""

    def __init__(self, task: Task, cut: PairCut, reports: Sequence[AnnotatedReport], settings: PairSettings) -> None:
        self._task, self._cut, self._settings = task, cut, settings
        self._texts = [LabelledText(item.report.text, item.labels) for item in reports]
        self._forms = SurfaceForms.of(task, self._texts)
        self._n_examples = len(self._epoch(self._texts, random.Random(f"{settings.loop.seed}/pairs")))

    def examples(self, epoch: int) -> list[PairExample]:
        """A pure function of the epoch's number, and as many in every epoch."""
        rng = random.Random(f"{self._settings.loop.seed}/{epoch}/pairs")
        texts = [
            augmented(self._task, text, self._texts, self._forms, self._settings.augmentation, rng)
            if rng.random() < self._settings.augmented_share
            else text
            for text in self._texts
        ]
        found = self._epoch(texts, rng)
        rng.shuffle(found)
        while len(found) < self._n_examples:
            found.append(rng.choice(found))
        return found[: self._n_examples]

    def as_given(self) -> list[PairExample]:
        """Every subject that a report states or names, nothing augmented."""
        return [example for text in self._texts for example in self._of(text, 1.0, random.Random(0))]

    def _epoch(self, texts: Sequence[LabelledText], rng: random.Random) -> list[PairExample]:
        return [example for text in texts for example in self._of(text, self._settings.absent_share, rng)]

    def _of(self, text: LabelledText, absent_share: float, rng: random.Random) -> list[PairExample]:
        columns = self._cut.columns
        named = {mention.name for mention in entity_mentions(self._task, text.text)}
        subjects = [key for key in columns.subjects if key in text.labels or (key in named and rng.random() < absent_share)]
        if not subjects:
            return []
        told = [*value_mentions(self._task, text.text), *loose_value_mentions(self._task, text.text)]
        mentioned = {mention.name for mention in told}
        windows = self._cut.windows(text.text, subjects)
        return [PairExample(windows[key], *self._targets(key, text, mentioned)) for key in subjects]

    def _targets(self, subject: str, text: LabelledText, mentioned: set[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        columns = self._cut.columns
        present = subject in text.labels
        targets, weights = [float(present)], [1.0]
        for value in columns.values:
            targets.append(float(present and value in text.labels[subject]))
            open_to_it = present and value in columns.subjects[subject]
            weights.append(float(open_to_it) * (1.0 if value in mentioned else self._settings.unmentioned_weight))
        return tuple(targets), tuple(weights)


class PairLearner:
    """A Learner: weighted binary cross-entropy on logits; dev score = average precision of the values that reports mention."""

    def __init__(self, model: KeyFlagModel, maker: PairExamples, dev: Sequence[PairExample], *, pad_id: int) -> None:
        self.model: nn.Module = model
        self._model, self._maker, self._dev, self._pad_id = model, maker, dev, pad_id

    def examples(self, epoch: int) -> Sequence[PairExample]:
        return self._maker.examples(epoch)

    def n_tokens(self, example: PairExample) -> int:
        return longest_window_tokens(example.windows)

    def loss(self, batch: Sequence[PairExample], device: torch.device) -> Tensor:
        logits = self._logits(batch, device)
        targets = torch.tensor([example.targets for example in batch], device=device)
        weights = torch.tensor([example.weights for example in batch], device=device)
        losses = functional.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="none")
        return losses.sum() / weights.sum()

    def evaluate(self, device: torch.device) -> dict[str, float]:
        logits = logits_by_length(self._model, [example.windows for example in self._dev], pad_id=self._pad_id, device=device)
        targets = np.array([example.targets for example in self._dev])
        weights = np.array([example.weights for example in self._dev])
        loss = functional.binary_cross_entropy_with_logits(
            torch.tensor(logits), torch.tensor(targets, dtype=torch.float32), weight=torch.tensor(weights, dtype=torch.float32)
        )
        figures = value_figures(logits, self._dev)
        return {
            "score": figures["average_precision"],
            "dev_loss": float(loss),
            "dev_micro_f1": figures["micro_f1"],
            "dev_presence": float(average_precision_score(targets[:, 0], logits[:, 0])),
        }

    def _logits(self, batch: Sequence[PairExample], device: torch.device) -> Tensor:
        return report_logits(self._model, [example.windows for example in batch], pad_id=self._pad_id, device=device)


@dataclass(frozen=True, slots=True)
class PairsResult:
    """The run, and what its exported weights reach on dev."""

    loop: LoopResult
    figures: Mapping[str, float]
    warnings: Sequence[str]


def train_pairs(settings: PairSettings, folder: Path, *, progress: Callable[[Progress], None]) -> PairsResult:
    """Trains in `folder`, then writes pairs.onnx, pairs.json and their card into the weights folder of the settings.

    Raises:
        ConfigError, CorpusError, EncoderError, TrainingError, CheckpointError, TrainingStopped
    """
    task = load_task(settings.task)
    corpus = read_corpus(settings.corpus, task)
    flags, start, cut = _start(settings, task)
    _check_target(settings.weights, flags)
    torch.set_num_threads(settings.loop.threads)
    torch.manual_seed(settings.loop.seed)
    model = pair_model(start, cut.columns, dropout=settings.dropout, pad_id=cut.tokenizer.pad_id)
    dev = PairExamples(task, cut, corpus.splits["dev"], settings).as_given()
    if not any(1.0 in example.weights[1:] for example in dev):
        raise TrainingError(
            f"{settings.corpus}: no dev report mentions a value of a subject that it states; the pair encoder has nothing to learn"
        )
    learner = PairLearner(model, PairExamples(task, cut, corpus.splits["train"], settings), dev, pad_id=cut.tokenizer.pad_id)
    fingerprint = {
        "kind": "pairs",
        "task": task.name,
        "start": weights_hash(settings.start),
        "task_file": task.content_hash,
        "tokenizer": flags.trained["tokenizer"],
        "corpus": corpus.content_hash,
        "settings": settings_hash(settings),
    }
    result = train(learner, settings.loop, folder, fingerprint=fingerprint, progress=progress)
    model.load_state_dict(dict(result.best))
    figures = export_pairs(model, cut, corpus, settings, fingerprint=fingerprint, loop=result)
    return PairsResult(result, figures, corpus.warnings)


def _start(settings: PairSettings, task: Task) -> tuple[FlagConfig, KeyFlagModel, PairCut]:
    """The flags' configuration, their model as torch reads it back, and how texts are cut."""
    encoder = Encoder.load(settings.start, task=task)
    if encoder.task_name != task.name:
        raise TrainingError(f"{settings.start}: weights of task '{encoder.task_name}'; those of task '{task.name}' are expected")
    flags = FlagConfig.load(settings.start / CONFIG_FILE)
    tokenizer = ReportTokenizer.load(settings.start / TOKENIZER_FILE)
    return flags, read_back(settings.start / MODEL_FILE), PairCut(tokenizer, task, flags.window_tokens, flags.overlap_tokens)


def _check_target(weights: Path, flags: FlagConfig) -> None:
    path = weights / TOKENIZER_FILE
    if path.is_file() and file_sha256(path) != flags.trained["tokenizer"]:
        raise TrainingError(f"{path}: is another tokenizer than that of `start`; name the folder of `start` or an empty one")


def pair_model(start: KeyFlagModel, columns: PairColumns, *, dropout: float, pad_id: int) -> KeyFlagModel:
    """A pair encoder whose body is that of a flag encoder; mentions of subjects begin with the mark of the flags' keywords."""
    body = start.body.config
    shape = EncoderShape(
        body.num_hidden_layers,
        body.hidden_size,
        body.num_attention_heads,
        body.intermediate_size,
        body.max_position_embeddings,
        dropout,
    )
    model = KeyFlagModel(shape, vocabulary_size=body.vocab_size, pad_id=pad_id, n_keys=columns.n_logits, n_marks=columns.n_marks)
    model.body.load_state_dict(start.body.state_dict())
    with torch.no_grad():
        model.mark_embeddings.normal_(0.0, 0.02)
        named = start.shared_mark_embedding + start.mark_embeddings.mean(dim=0)
        model.mark_embeddings[0] += named
        model.mark_embeddings[columns.n_logits] += named
    return model


def export_pairs(
    model: KeyFlagModel,
    cut: PairCut,
    corpus: Corpus,
    settings: PairSettings,
    *,
    fingerprint: Mapping[str, str],
    loop: LoopResult,
) -> dict[str, float]:
    """Writes the int8 weights, after comparing torch, float32 ONNX and int8 ONNX on every dev question.

    Returns:
        Dev figures: `average_precision` and `micro_f1` at 0.5 of the values that reports mention, of int8; `float_micro_f1`;
        `int8_logit_difference`; `n_questions`.

    Raises:
        TrainingError: ONNX is not torch, or int8 costs more than 0.01 micro F1. Nothing is then written.
    """
    target, columns = settings.weights, cut.columns
    dev = PairExamples(corpus.task, cut, corpus.splits["dev"], settings).as_given()
    windows = [window for example in dev for window in example.windows]
    owners = [row for row, example in enumerate(dev) for _ in example.windows]
    with tempfile.TemporaryDirectory(dir=_made(target)) as building:
        float_path, int8_path = Path(building) / "float.onnx", Path(building) / PAIRS_FILE
        export_float(model, float_path)
        export_int8(model, int8_path, windows=_calibration_windows(corpus, cut, settings))
        by_torch = torch_logits(model, windows)
        by_float, by_int8 = (onnx_logits(path, windows, n_marks=columns.n_marks) for path in (float_path, int8_path))
        check_float(by_torch, by_float)
        float_figures, int8_figures = (value_figures(report_maxima(logits, owners), dev) for logits in (by_float, by_int8))
        check_int8(float_f1=float_figures["micro_f1"], int8_f1=int8_figures["micro_f1"])
        figures = int8_figures | {
            "float_micro_f1": float_figures["micro_f1"],
            "int8_logit_difference": float(np.abs(by_int8 - by_float).max()),
            "n_questions": float(len(dev)),
        }
        config = PairConfig(
            task=corpus.task.name,
            subjects={key: list(values) for key, values in columns.subjects.items()},
            values=list(columns.values),
            window_tokens=cut.window_tokens,
            overlap_tokens=cut.overlap_tokens,
            trained={**fingerprint, "model": file_sha256(int8_path)},
        )
        card = pairs_card(config, figures, corpus, settings, loop)
        if not (target / TOKENIZER_FILE).is_file():
            shutil.copyfile(settings.start / TOKENIZER_FILE, target / TOKENIZER_FILE)
        int8_path.replace(target / PAIRS_FILE)
        (target / PAIRS_CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
        (target / PAIRS_CARD_FILE).write_text(card, encoding="utf-8")
    return figures


def value_figures(logits: Array, examples: Sequence[PairExample]) -> dict[str, float]:
    """Average precision, and micro F1 at 0.5, of the values that the reports mention, given that their subjects are present."""
    targets = np.array([example.targets for example in examples])
    weights = np.array([example.weights for example in examples])
    asked = weights[:, 1:] == 1.0
    told, said = targets[:, 1:][asked], logits[:, 1:][asked]
    return {
        "average_precision": float(average_precision_score(told, said)),
        "micro_f1": key_figures(said[:, None] > 0, told[:, None])["micro_f1"],
    }


def _calibration_windows(corpus: Corpus, cut: PairCut, settings: PairSettings) -> list[MarkedWindow]:
    examples = PairExamples(corpus.task, cut, calibration_reports(corpus), settings).as_given()
    return [window for example in examples for window in example.windows]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder

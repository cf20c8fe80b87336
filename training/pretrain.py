"""`radtag train pretrain`: masked-language-model training of the body on report texts; masks are drawn anew every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional

from configs.schema import load_task
from stage1_encoder.model import MaskedTokenModel
from stage1_encoder.tokenizer import ReportTokenizer
from stage2_relations.model_file import file_sha256
from training.corpus import read_annotations
from training.loop import BEST_FILE, LoopResult, Progress, train
from training.settings import PretrainSettings
from training.starting_weights import load_start
from training.train_tokenizer import training_texts

# Shares of the masked positions that get [MASK] and a random token; the rest keep their own (BERT, Devlin et al. 2019).
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1
DEV_BATCH = 16
# Few distinct shapes: torch compiles and keeps a kernel for every shape that it meets.
LENGTH_STEP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class MaskedWindow:
    """A window whose tokens at `positions` were replaced; `answers` are the tokens that stood there."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    answers: tuple[int, ...]


class MaskedTokenLearner:
    """A Learner: cross-entropy of the replaced tokens. The dev masks are the same in every epoch."""

    def __init__(
        self,
        model: MaskedTokenModel,
        tokenizer: ReportTokenizer,
        *,
        train: Sequence[Sequence[int]],
        dev: Sequence[Sequence[int]],
        share: float,
        seed: int,
    ) -> None:
        self.model: nn.Module = model
        self._limit_tokens = model.body.config.max_position_embeddings
        self._tokenizer, self._train, self._share, self._seed = tokenizer, train, share, seed
        self._dev = [self._masked(window, np.random.default_rng([seed, 0, index])) for index, window in enumerate(dev)]

    def examples(self, epoch: int) -> Sequence[MaskedWindow]:
        return [
            self._masked(window, np.random.default_rng([self._seed, epoch + 1, index])) for index, window in enumerate(self._train)
        ]

    def n_tokens(self, example: MaskedWindow) -> int:
        return len(example.ids)

    def loss(self, batch: Sequence[MaskedWindow], device: torch.device) -> Tensor:
        logits, answers = self._answer(batch, device)
        return functional.cross_entropy(logits.float(), answers)

    def evaluate(self, device: torch.device) -> dict[str, float]:
        loss, right, asked = 0.0, 0, 0
        for start in range(0, len(self._dev), DEV_BATCH):
            logits, answers = self._answer(self._dev[start : start + DEV_BATCH], device)
            loss += float(functional.cross_entropy(logits.float(), answers, reduction="sum"))
            right += int((logits.argmax(dim=-1) == answers).sum())
            asked += len(answers)
        return {"score": -loss / asked, "dev_loss": loss / asked, "dev_accuracy": right / asked}

    def _answer(self, batch: Sequence[MaskedWindow], device: torch.device) -> tuple[Tensor, Tensor]:
        ids, mask = pad([window.ids for window in batch], self._tokenizer.pad_id, limit_tokens=self._limit_tokens)
        asked = torch.zeros_like(mask)
        for row, window in enumerate(batch):
            asked[row, list(window.positions)] = True
        answers = torch.tensor([answer for window in batch for answer in window.answers])
        return self.model(ids.to(device), mask.to(device), asked.to(device)), answers.to(device)

    def _masked(self, window: Sequence[int], rng: np.random.Generator) -> MaskedWindow:
        n_inner = len(window) - 2
        n_masked = max(1, round(n_inner * self._share))
        positions = np.sort(rng.choice(n_inner, size=min(n_masked, n_inner), replace=False)) + 1
        ids = list(window)
        answers = tuple(ids[position] for position in positions)
        first_ordinary = max(self._tokenizer.special_ids) + 1
        for position, draw in zip(positions, rng.random(len(positions)), strict=True):
            if draw < MASK_SHARE:
                ids[position] = self._tokenizer.mask_id
            elif draw < MASK_SHARE + RANDOM_SHARE:
                ids[position] = int(rng.integers(first_ordinary, self._tokenizer.vocabulary_size))
        return MaskedWindow(tuple(ids), tuple(positions.tolist()), answers)


def pad(windows: Sequence[Sequence[int]], pad_id: int, *, limit_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids [windows, longest] and a mask that is True on tokens. `longest` goes up to a multiple of 16 or the limit."""
    longest = max(len(window) for window in windows)
    longest = max(longest, min(limit_tokens, -(-longest // LENGTH_STEP_TOKENS) * LENGTH_STEP_TOKENS))
    ids = torch.full((len(windows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(windows), longest), dtype=torch.bool)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(list(window))
        mask[row, : len(window)] = True
    return ids, mask


def pretrain(settings: PretrainSettings, folder: Path, *, progress: Callable[[Progress], None]) -> LoopResult:
    """Trains and leaves best.safetensors and result.json in `folder`, which `start:` of a later run can name.

    Raises:
        ConfigError, CorpusError, TokenizerError, TrainingError, CheckpointError, TrainingStopped
    """
    tokenizer = ReportTokenizer.load(settings.tokenizer)
    texts = training_texts(settings.corpora, settings.texts)
    dev_texts = [
        item.report.text
        for name, corpus in settings.corpora.items()
        for item in read_annotations(corpus / "dev.jsonl", load_task(name))
    ]
    shape = settings.shape.shape()
    torch.manual_seed(settings.loop.seed)
    model = MaskedTokenModel(shape, vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id)
    start = load_start(model, settings.start, tokenizer, glosses=settings.glosses, seed=settings.loop.seed)
    learner = MaskedTokenLearner(
        model,
        tokenizer,
        train=_windows(texts, tokenizer, shape.window_tokens),
        dev=_windows(dev_texts, tokenizer, shape.window_tokens),
        share=settings.masked_share,
        seed=settings.loop.seed,
    )
    fingerprint = {
        "kind": "masked tokens",
        "start": start,
        "tokenizer": tokenizer.content_hash,
        "corpus": texts_hash([*texts, "\n", *dev_texts]),
        "settings": settings_hash(settings),
        **start_files(settings.start, settings.glosses),
    }
    return train(learner, settings.loop, folder, fingerprint=fingerprint, progress=progress)


def settings_hash(settings: BaseModel) -> str:
    """sha256 of the settings that decide a result: threads, device and how often a checkpoint is written do not."""
    document = settings.model_dump(mode="json")
    for name in ("threads", "checkpoint_every_steps", "device"):
        document.get("loop", {}).pop(name, None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def start_files(start: str, glosses: Path | None) -> dict[str, str]:
    """sha256 of the files that `start` and `glosses` only name: another file under the same name is another training."""
    if start == "random":
        return {}
    if start == "minilm":
        return {} if glosses is None else {"glosses": file_sha256(glosses)}
    return {"start_weights": file_sha256(Path(start) / BEST_FILE)}


def texts_hash(texts: Sequence[str]) -> str:
    """sha256 over texts and their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _windows(texts: Sequence[str], tokenizer: ReportTokenizer, window_tokens: int) -> list[list[int]]:
    windows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        windows.extend(
            window for window in tokenizer.windows(ids, window_tokens=window_tokens, overlap_tokens=0) if len(window) > 2
        )
    return windows

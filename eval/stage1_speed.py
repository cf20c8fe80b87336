"""`make bench`, stage 1: our encoder against the same weights in torch, padded to the longest window, as one would first write it.

The baseline is transformers' BertModel in float32 with the weights that the int8 file stands for, sixteen windows of 256 tokens a
batch. Both sides clean, tokenise and mark every text. Times are processor time, which other work on the machine does not stretch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from configs.schema import Task
from eval.metrics import count
from pipeline.annotations import AnnotatedReport
from stage1_encoder.encoder import MODEL_FILE, TOKENIZER_FILE, Encoder
from stage1_encoder.flags import CONFIG_FILE, FlagConfig, flags_of
from stage1_encoder.marks import MarkedWindow, WindowCut, mark_matrix
from stage1_encoder.model import KeyFlagModel
from stage1_encoder.onnx import read_back
from stage1_encoder.tokenizer import ReportTokenizer

BATCH_WINDOWS = 16
Logits = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Stage1Speed:
    """Medians over `n_runs` runs over `n_texts` texts, on one thread.

    Attributes:
        encoder_ms, padded_ms: Processor milliseconds a text.
        encoder_f1, padded_f1: Micro F1 of the decided keys on `n_dev` annotated reports.
        logit_difference: Largest one between the two, over all texts and keys.
    """

    task: str
    n_texts: int
    n_runs: int
    tokens_a_text: float
    encoder_ms: float
    padded_ms: float
    n_dev: int
    encoder_f1: float
    padded_f1: float
    logit_difference: float

    @property
    def speedup(self) -> float:
        """How many times faster the encoder is."""
        return self.padded_ms / self.encoder_ms


class PaddedEncoder:
    """The weights of an encoder's folder in torch: windows padded to the model's length, in batches, in the order given."""

    def __init__(self, folder: Path, task: Task) -> None:
        config = FlagConfig.load(folder / CONFIG_FILE)
        self._model: KeyFlagModel = read_back(folder / MODEL_FILE)
        tokenizer = ReportTokenizer.load(folder / TOKENIZER_FILE)
        self._pad_id, self._n_tokens = tokenizer.pad_id, config.window_tokens
        self._n_keys = len(task.keys)
        self.cut = WindowCut(tokenizer, task, config.window_tokens, config.overlap_tokens)

    def logits(self, texts: Sequence[str]) -> Logits:
        """[texts, keys], the maximum over each text's windows."""
        windows = [self.cut.windows(text) for text in texts]
        flat = [window for of_text in windows for window in of_text]
        rows = [self._batch(flat[start : start + BATCH_WINDOWS]) for start in range(0, len(flat), BATCH_WINDOWS)]
        starts = np.cumsum([0, *(len(of_text) for of_text in windows)])[:-1]
        maxima: Logits = np.maximum.reduceat(np.concatenate(rows), starts, axis=0)
        return maxima

    def _batch(self, windows: Sequence[MarkedWindow]) -> Logits:
        ids = torch.full((len(windows), self._n_tokens), self._pad_id)
        marks = torch.zeros((len(windows), self._n_tokens, self._n_keys))
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, window in enumerate(windows):
            n_tokens = len(window.ids)
            ids[row, :n_tokens] = torch.tensor(window.ids)
            marks[row, :n_tokens] = torch.from_numpy(mark_matrix(window, self._n_keys))
            mask[row, :n_tokens] = True
        with torch.inference_mode():
            logits: Logits = self._model(ids, marks, mask).numpy()
        return logits


def measure_stage1(
    task: Task, folder: Path, texts: Sequence[str], dev: Sequence[AnnotatedReport], *, n_runs: int = 3
) -> Stage1Speed:
    """Runs both over `texts` in turn, `n_runs` times after one warm-up, and decides the keys of `dev` with the folder's thresholds.

    Raises:
        EncoderError, TokenizerError, FlagConfigError: the folder cannot be used.
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("no text to measure on")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder, padded = Encoder.load(folder, task=task, threads=1), PaddedEncoder(folder, task)
        ours, theirs = encoder.logits(texts), padded.logits(texts[:BATCH_WINDOWS])
        seconds: dict[str, list[float]] = {"encoder": [], "padded": []}
        for _ in range(n_runs):
            ours = _timed(encoder.logits, texts, seconds["encoder"])
            theirs = _timed(padded.logits, texts, seconds["padded"])
        config = FlagConfig.load(folder / CONFIG_FILE)
        n_tokens = sum(len(window.ids) for text in texts for window in padded.cut.windows(text))
        return Stage1Speed(
            task=task.name,
            n_texts=len(texts),
            n_runs=n_runs,
            tokens_a_text=n_tokens / len(texts),
            encoder_ms=median(seconds["encoder"]) / len(texts) * 1000,
            padded_ms=median(seconds["padded"]) / len(texts) * 1000,
            n_dev=len(dev),
            encoder_f1=_micro_f1(encoder.logits, dev, config),
            padded_f1=_micro_f1(padded.logits, dev, config),
            logit_difference=float(np.abs(ours - theirs).max()),
        )
    finally:
        torch.set_num_threads(threads)


def _timed(read: Callable[[Sequence[str]], Logits], texts: Sequence[str], seconds: list[float]) -> Logits:
    begin_s = time.process_time()
    logits = read(texts)
    seconds.append(time.process_time() - begin_s)
    return logits


def _micro_f1(read: Callable[[Sequence[str]], Logits], dev: Sequence[AnnotatedReport], config: FlagConfig) -> float:
    if not dev:
        return float("nan")
    decided = [flags_of(row.tolist(), config).decided for row in read([item.report.text for item in dev])]
    return count([(frozenset(item.labels), frozenset(keys)) for item, keys in zip(dev, decided, strict=True)]).f1

"""`radtag train tokenizer`: one tokenizer for all tasks, from the training splits and any unlabelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.schema import load_task
from stage1_encoder.encoder import TOKENIZER_FILE
from stage1_encoder.text import clean
from stage1_encoder.tokenizer import ReportTokenizer
from training.corpus import read_annotations, read_texts
from training.held_out import HeldOut, tell_left_out
from training.settings import TokenizerSettings


def train_tokenizer(settings: TokenizerSettings, folder: Path) -> dict[str, float]:
    """Writes folder/tokenizer.json; returns its figures. Raises ConfigError or CorpusError."""
    texts = training_texts(settings.corpora, settings.texts)
    tokenizer = ReportTokenizer.train(texts, vocabulary_size=settings.vocabulary_size, min_frequency=settings.min_frequency)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / TOKENIZER_FILE)
    n_tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    n_words = sum(len(clean(text).text.split()) for text in texts)
    return {
        "n_reports": len(texts),
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokens_per_report": n_tokens / len(texts),
        "tokens_per_word": n_tokens / n_words,
    }


def training_texts(corpora: Mapping[str, Path], extra: Sequence[Path]) -> list[str]:
    """Texts of every task's train.jsonl, then of the unlabelled files, in order.

    Of the latter, reports of a split that a corpus is measured with are left out, and a log line says how many.
    """
    texts: list[str] = []
    for task_name, folder in corpora.items():
        texts.extend(item.report.text for item in read_annotations(folder / "train.jsonl", load_task(task_name)))
    if not extra:
        return texts
    held_out = HeldOut.of(corpora.values())
    for path in extra:
        reports = read_texts(path)
        kept = [report.text for report in reports if report not in held_out]
        tell_left_out(path, n_left_out=len(reports) - len(kept), n_reports=len(reports))
        texts.extend(kept)
    return texts

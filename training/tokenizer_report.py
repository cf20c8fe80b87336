"""What a tokenizer costs on reports not learned from: ours with and without morphemes, the MiniLM WordPiece, SmolLM2's BPE."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.schema import load_task
from stage1_encoder.text import clean
from stage1_encoder.tokenizer import ReportTokenizer, pieces
from stage2_relations.model_file import packaged_model
from stage2_relations.sentences import sentences
from training.corpus import CorpusError, read_annotations
from training.settings import TokenizerSettings
from training.starting_weights import MINILM_PACKAGE
from training.train_tokenizer import training_texts

_HANGUL_RUN = re.compile(r"[가-힣]+")


@dataclass(frozen=True, slots=True)
class TokenizerFigures:
    """One tokenizer on `n_texts` texts.

    Attributes:
        tokens_a_word: Words are what white space parts.
        tokens_a_syllable: Of runs of Hangul, each on its own as after a space; nan when the texts have none.
        lossless: Share of the texts that decoding gives back as they were cleaned.
        sentences_per_s: Of processor time, on one thread.
    """

    name: str
    vocabulary_size: int
    n_texts: int
    tokens_a_word: float
    tokens_a_syllable: float
    lossless: float
    sentences_per_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """A tokenizer by what is measured of it: ids without special tokens, and the text of those ids."""

    vocabulary_size: int
    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]


def tokenizer_report(settings: TokenizerSettings) -> dict[str, list[TokenizerFigures]]:
    """By task, the figures of every tokenizer on its dev.jsonl; ours are trained anew as `settings` say.

    Raises:
        ConfigError, CorpusError: settings or reports that cannot be used.
        ModelFileError: the package of SmolLM2 is not installed.
    """
    texts = training_texts(settings.corpora, settings.texts)
    measured = {
        "ours": _ours(ReportTokenizer.train(texts, vocabulary_size=settings.vocabulary_size, min_frequency=settings.min_frequency)),
        "ours without morphemes": without_morphemes(
            texts, vocabulary_size=settings.vocabulary_size, min_frequency=settings.min_frequency
        ),
        "MiniLM WordPiece": _minilm(),
        "SmolLM2 BPE": _smollm2(),
    }
    return {
        task_name: [figures(name, tokenizer, _dev_texts(task_name, folder)) for name, tokenizer in measured.items()]
        for task_name, folder in settings.corpora.items()
    }


def figures(name: str, tokenizer: Measured, texts: Sequence[str]) -> TokenizerFigures:
    """The figures of one tokenizer."""
    cleaned = [clean(text).text for text in texts]
    ids = [tokenizer.encode(text) for text in cleaned]
    runs = [run for text in cleaned for run in _HANGUL_RUN.findall(text)]
    n_syllables = sum(map(len, runs))
    n_run_tokens = sum(len(tokenizer.encode(run)) for run in runs)
    parts = [text[span.start : span.end] for text in cleaned for span in sentences(text)]
    begin_s = time.process_time()
    for part in parts:
        tokenizer.encode(part)
    seconds = time.process_time() - begin_s
    return TokenizerFigures(
        name=name,
        vocabulary_size=tokenizer.vocabulary_size,
        n_texts=len(texts),
        tokens_a_word=sum(map(len, ids)) / sum(len(text.split()) for text in cleaned),
        tokens_a_syllable=n_run_tokens / n_syllables if n_syllables else float("nan"),
        lossless=sum(tokenizer.decode(found) == text for found, text in zip(ids, cleaned, strict=True)) / len(texts),
        sentences_per_s=len(parts) / seconds if seconds else float("nan"),
    )


def without_morphemes(texts: Iterable[str], *, vocabulary_size: int, min_frequency: int) -> Measured:
    """Ours in all but one thing: a run of Hangul is one piece."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator((whole_runs(clean(text).text) for text in texts), trainer=trainer)

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = bpe.encode(whole_runs(text), is_pretokenized=True, add_special_tokens=False).ids
        return ids

    return Measured(bpe.get_vocab_size(), encode, lambda ids: str(bpe.decode(list(ids))).removeprefix(" "))


def whole_runs(cleaned: str) -> list[str]:
    """The pieces of a cleaned text with the morphemes of each run of Hangul put together again."""
    whole: list[str] = []
    for piece in pieces(cleaned):
        if whole and _HANGUL_RUN.fullmatch(piece) and _HANGUL_RUN.fullmatch(whole[-1].removeprefix(" ")):
            whole[-1] += piece
        else:
            whole.append(piece)
    return whole


def _ours(tokenizer: ReportTokenizer) -> Measured:
    return Measured(tokenizer.vocabulary_size, lambda text: tokenizer.encode(text).ids, tokenizer.decode)


def _minilm() -> Measured:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(f"package {MINILM_PACKAGE} is not installed; its WordPiece is one of the tokenizers compared")
    wordpiece = Tokenizer.from_file(str(Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json"))
    wordpiece.no_truncation()
    wordpiece.no_padding()

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = wordpiece.encode(text, add_special_tokens=False).ids
        return ids

    return Measured(wordpiece.get_vocab_size(), encode, lambda ids: str(wordpiece.decode(list(ids))))


def _smollm2() -> Measured:
    from llama_cpp import Llama

    from stage2_relations.llama_log import silence_llama

    silence_llama()
    vocabulary = Llama(str(packaged_model()), vocab_only=True, verbose=False)

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = vocabulary.tokenize(f" {text}".encode(), add_bos=False, special=False)
        return ids

    def decode(ids: Sequence[int]) -> str:
        return str(vocabulary.detokenize(list(ids)).decode(errors="replace")).removeprefix(" ")

    return Measured(vocabulary.n_vocab(), encode, decode)


def _dev_texts(task_name: str, folder: Path) -> list[str]:
    return [item.report.text for item in read_annotations(folder / "dev.jsonl", load_task(task_name))]


def table(report: Mapping[str, Sequence[TokenizerFigures]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [
        "| reports | tokenizer | vocabulary | tokens a word | tokens a syllable | lossless | sentences/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task_name, rows in report.items():
        for row in rows:
            syllable = "–" if row.tokens_a_syllable != row.tokens_a_syllable else f"{row.tokens_a_syllable:.2f}"
            lines.append(
                f"| {Path(task_name).stem} dev (n={row.n_texts}) | {row.name} | {row.vocabulary_size:,} | "
                f"{row.tokens_a_word:.2f} | {syllable} | {row.lossless:.1%} | {row.sentences_per_s:,.0f} |"
            )
    return lines

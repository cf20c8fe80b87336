"""Byte-level BPE that knows scripts and morphemes: the one tokenizer of training and inference.

A cleaned text is cut into pieces (Latin words, pairs of digits, Hangul morphemes, single punctuation marks; a piece carries the
space before it); BPE merges bytes inside a piece only. The cut is made here and not by a pre-tokenizer of the `tokenizers`
library: that library cannot save one written in Python, so a loaded file would tokenise otherwise than the trained object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.contracts import Span
from stage1_encoder.morphemes import analyser_version, morphemes
from stage1_encoder.text import clean

FORMAT = "radtag tokenizer"
SEGMENTATION_VERSION = 1
PAD, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
_HANGUL = r"\uAC00-\uD7FF\u1100-\u11FF\u3130-\u318F\uA960-\uA97F"
# Digits in pairs: a hundred tokens cover every number, where whole numbers would fill the vocabulary.
_LETTER = rf"(?![\d_{_HANGUL}])\w"
_PIECE = re.compile(rf"( ?)(?:(?P<hangul>[{_HANGUL}]+)|\d{{1,2}}|(?:{_LETTER}[\u0300-\u036F]*)+|.)", re.DOTALL)


class TokenizerError(Exception):
    """A tokenizer file that is missing, damaged or made by another segmentation."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Token ids without special tokens, and each token's characters in the text as given (without the leading space)."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def pieces(cleaned: str) -> Iterator[str]:
    """The pieces of a cleaned text; they join to a space and the text exactly.

    The space before the first word makes it the same token as anywhere else in a report.
    """
    for match in _PIECE.finditer(" " + cleaned if cleaned else ""):
        if match.group("hangul") is None:
            yield match.group()
        else:
            first, *rest = morphemes(match.group("hangul"))
            yield match.group(1) + first
            yield from rest


class ReportTokenizer:
    """Encodes reports. Made by `train` or `load`; never changes afterwards."""

    def __init__(self, bpe: Tokenizer) -> None:
        self._bpe = bpe
        # A report that itself says "[MASK]" gets ordinary tokens.
        self._bpe.encode_special_tokens = True
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = (self._special_id(token) for token in SPECIAL_TOKENS)
        self.special_ids = frozenset((self.pad_id, self.cls_id, self.sep_id, self.mask_id))

    def _special_id(self, token: str) -> int:
        found = self._bpe.token_to_id(token)
        if found is None:
            raise TokenizerError(f"the vocabulary has no '{token}'")
        return found

    @classmethod
    def train(cls, texts: Iterable[str], *, vocabulary_size: int, min_frequency: int = 2) -> ReportTokenizer:
        """Learns at most `vocabulary_size` tokens, the 256 bytes and 4 special tokens among them, from texts as given."""
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=min_frequency,
            special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator((list(pieces(clean(text).text)) for text in texts), trainer=trainer)
        return cls(bpe)

    @classmethod
    def load(cls, path: Path) -> ReportTokenizer:
        """Raises TokenizerError when the file is missing, is no tokenizer of radtag, or was made with another segmentation."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TokenizerError(f"{path}: file does not exist; `radtag train tokenizer` makes it") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise TokenizerError(f"{path}: cannot be read as JSON: {error}") from None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise TokenizerError(f"{path}: is no tokenizer file of radtag ('format' is not '{FORMAT}')")
        expected = {"segmentation_version": SEGMENTATION_VERSION, "morphemes": analyser_version()}
        for name, value in expected.items():
            if document.get(name) != value:
                raise TokenizerError(
                    f"{path}: {name} is {document.get(name)!r}; this installation cuts texts by {value!r}, so train anew"
                )
        try:
            return cls(Tokenizer.from_str(json.dumps(document["bpe"])))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every fault of its JSON
            raise TokenizerError(f"{path}: 'bpe' is damaged: {error}") from None

    def save(self, path: Path) -> None:
        """Writes one JSON file."""
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """What `save` writes; equal tokenizers give equal text."""
        document = {
            "format": FORMAT,
            "segmentation_version": SEGMENTATION_VERSION,
            "morphemes": analyser_version(),
            "bpe": json.loads(self._bpe.to_str()),
        }
        return json.dumps(document, ensure_ascii=False, indent=0)

    @property
    def content_hash(self) -> str:
        """sha256 of the file that `save` writes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, special tokens among them."""
        return int(self._bpe.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> TokenizedText:
        """Tokens of the cleaned text. A character whose bytes part into several tokens gives each of them its whole span."""
        cleaned = clean(text)
        parts = list(pieces(cleaned.text))
        encoding = self._bpe.encode(parts, is_pretokenized=True, add_special_tokens=False)
        piece_starts = [-1]
        for part in parts:
            piece_starts.append(piece_starts[-1] + len(part))
        first_characters = [piece_starts[word] for word in encoding.word_ids if word is not None]
        spans = []
        for first, (start, end) in zip(first_characters, encoding.offsets, strict=True):
            start, end = start + first, end + first
            if start < 0 or (end - start > 1 and cleaned.text[start] == " "):
                start += 1
            spans.append(cleaned.given(start, max(end, start + 1)))
        return TokenizedText(tuple(encoding.ids), tuple(spans))

    def decode(self, ids: Sequence[int]) -> str:
        """The cleaned text of `encode`'s ids; special tokens are left out."""
        text = str(self._bpe.decode([token for token in ids if token not in self.special_ids], skip_special_tokens=True))
        return text.removeprefix(" ")

    def token_texts(self) -> list[str | None]:
        """The text of every id, in order; None for special tokens and for tokens that are no whole characters."""
        texts: list[str | None] = []
        for token in range(self.vocabulary_size):
            text = None if token in self.special_ids else str(self._bpe.decode([token]))
            texts.append(None if text is None or "\ufffd" in text else text)
        return texts

    def windows(self, ids: Sequence[int], *, window_tokens: int, overlap_tokens: int) -> list[list[int]]:
        """`[CLS] … [SEP]` windows of at most `window_tokens` ids that share `overlap_tokens`; one window for an empty text."""
        room = window_tokens - 2
        if not 0 <= overlap_tokens < room:
            raise ValueError(
                f"overlap_tokens is {overlap_tokens}; 0 to {room - 1} is expected for windows of {window_tokens} tokens"
            )
        starts = range(0, max(1, len(ids) - overlap_tokens), room - overlap_tokens)
        return [[self.cls_id, *ids[start : start + room], self.sep_id] for start in starts]

"""Sentence boundaries of mixed Korean/English radiology text, by own rules and as the spaCy component `clinical_sentences`.

A sentence ends at a line break (unless the line is visibly wrapped), at a full stop that is neither an abbreviation's, a date's nor
a decimal's, before a numbered item on the same line, and after a Korean terse ending (없음, 보임, 관찰됨) that has no full stop.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from configs.contracts import Span

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

SPACY_COMPONENT = "clinical_sentences"

# Never end a sentence, whatever follows.
_ALWAYS_OPEN = frozenset(
    ("rt", "lt", "bil", "bilat", "dr", "mr", "mrs", "ms", "prof", "vs", "cf", "fig", "figs", "eg", "ie")
) | frozenset(("e.g", "i.e", "c.c", "c.i", "w.r.t", "incl", "esp", "resp", "viz", "approx"))
# End a sentence only when a capital letter or Hangul follows.
_OPEN_BEFORE_LOWER_CASE = (
    frozenset(
        ("ca", "adenoca", "mets", "seg", "segs", "subseg", "div", "ant", "post", "sup", "inf", "lat", "med", "apicopost", "mid")
    )
    | frozenset(
        ("prev", "postop", "preop", "op", "pulm", "bronch", "peribronch", "periph", "susp", "prob", "ext", "int", "max", "min")
    )
    | frozenset(("sx", "dx", "hx", "tx", "bx", "mult", "mod", "neg", "pos", "temp", "occ", "fr", "par", "st", "squamous", "amt"))
)
_LINE = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_ITEM_START = re.compile(r"\s*(?:[-–—*•·▶■□●○#>+~]|=>|\(?\d{1,2}[.)]|\d{1,2}\s*[:,]|[A-Za-z][.)]\s|\[|<)")
_LOWER_CASE_START = re.compile(r"\s*[a-z]")
_UNFINISHED_LINE = re.compile(
    r"(?:[,/&\-]|(?<![A-Za-z])(?:of|the|a|an|in|and|or|with|to|at|from|is|are|was|were|no|on|for|by|without|than))\s*$", re.I
)
_DATE_BEFORE_STOP = re.compile(r"(?:19|20)\d\d\s?[.]\s?\d{1,2}(?:\s?[.]\s?\d{1,2})?$")
_WORD_BEFORE_STOP = re.compile(r"[A-Za-z](?:[A-Za-z]|\.(?=[A-Za-z]))*$")
_ITEM_NUMBER = re.compile(r"(?:^|[.;:)\]음함됨임다]\s+)\(?\d{1,2}$")
_STOP = re.compile(r"[.!?。]+[)\]\"'”’]*")
_KOREAN_END = re.compile(
    r"(?<=[가-힣])(?:없음|있음|않음|보임|됨|었음|았음|였음|했음|하였음|소견임|상태임|정도임|양상임|것임|같음|습니다|합니다|입니다|됩니다"
    r"|(?<!포)함)(?=\s+[A-Za-z가-힣0-9])"
)
_KOREAN_END_BARE = re.compile(r"(?<![가-힣])(?:없음|있음)(?=\s+[A-Za-z가-힣0-9])")
_KOREAN_NOT_AFTER_END = re.compile(
    r"\s+(?:을|를|으로|에도|에|이|가|은|는|및|과|와|또는|외|정도|상태|양상|소견|가능성|경우|시)(?![가-힣])"
)
_INLINE_ITEM = re.compile(r"(?<=[.;)음함됨임다])\s+(?=\(?\d{1,2}[.)]\s+[A-Za-z가-힣(])")
# `" Fibrotic band " Emphysema`, `• Fibrotic band • Emphysema`: conclusions whose line breaks were lost.
_INLINE_BULLET = re.compile(r"\s+(?=[•▶■●\"]\s+[A-Z가-힣])")
_WRAP_CHARS_MIN = 60
NEAR_CHARS = 80
# Something before the separators and the item number that may end the piece.
_SAYS_ENOUGH = re.compile(r"[^\s\-*•>#(\[0-9]")


def sentences(text: str) -> list[Span]:
    """Sentences in order: every character but white space lies in exactly one span, and no span begins or ends with white space."""
    found: list[Span] = []
    for start, end in _blocks(text):
        begin = start
        for cut in _cuts(text, start, end):
            _append(found, text, begin, cut)
            begin = cut
        _append(found, text, begin, end)
    return found


def _append(found: list[Span], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    stripped = piece.strip()
    if stripped:
        begin = start + len(piece) - len(piece.lstrip())
        found.append(Span(begin, begin + len(stripped)))


def _blocks(text: str) -> list[tuple[int, int]]:
    """Lines, with wrapped ones joined."""
    lines = [match.span() for match in _LINE.finditer(text) if match.group().strip()]
    if not lines:
        return []
    long_lines = [end - start for start, end in lines if end - start >= _WRAP_CHARS_MIN]
    width = max(long_lines, default=0) if len(long_lines) >= 3 else 0
    blocks = [lines[0]]
    for start, end in lines[1:]:
        last_start, last_end = blocks[-1]
        if _is_wrapped(text, last_start, last_end, start, end, width):
            blocks[-1] = (last_start, end)
        else:
            blocks.append((start, end))
    return blocks


def _is_wrapped(text: str, last_start: int, last_end: int, start: int, end: int, width: int) -> bool:
    if text[last_end:start].count("\n") > 1:
        return False
    line, following = text[last_start:last_end], text[start:end]
    if _ITEM_START.match(following) or line.rstrip().endswith((".", ":", "!", "?")):
        return False
    if _UNFINISHED_LINE.search(line.rstrip()[-NEAR_CHARS:]) and not line.rstrip().endswith("--"):
        return len(line.strip()) > 30
    last_line = line.rsplit("\n", 1)[-1]
    first_word = following.split(maxsplit=1)[0]
    filled = width and len(last_line.rstrip()) >= _WRAP_CHARS_MIN and len(last_line.rstrip()) + 1 + len(first_word) > width - 2
    return bool(filled and _LOWER_CASE_START.match(following))


def _cuts(text: str, start: int, end: int) -> list[int]:
    cuts = {match.start() for pattern in (_INLINE_ITEM, _INLINE_BULLET) for match in pattern.finditer(text, start, end)}
    cuts.update(match.end() for match in _STOP.finditer(text, start, end) if _ends_sentence(text, start, match))
    for pattern in (_KOREAN_END, _KOREAN_END_BARE):
        cuts.update(
            match.end() for match in pattern.finditer(text, start, end) if not _KOREAN_NOT_AFTER_END.match(text, match.end(), end)
        )
    return sorted(cuts)


def _ends_sentence(text: str, line_start: int, stop: re.Match[str]) -> bool:
    following = text[stop.end() : stop.end() + 40]
    before = _before(text, line_start, stop.start())
    if not following or not following.strip():
        return True
    if stop.group()[0] in "!?。":
        return following[0].isspace() and bool(before.strip())
    nearest = following.lstrip()[0]
    if _ITEM_NUMBER.search(before.lstrip(" -*•>#")) or not before.strip(" -*•(["):
        return False
    if not following[0].isspace():
        # "seen.No effusion": a lower-case word, a full stop, a capitalised word.
        return (
            len(stop.group()) == 1
            and bool(re.search(r"[a-z]{3}$|[가-힣)]$", before))
            and bool(re.match(r"[A-Z][a-z]|[가-힣]", following))
        )
    if _DATE_BEFORE_STOP.search(before):
        return bool(re.match(r"\s+(?:[A-Z][a-z]|\n)", following))
    word = _WORD_BEFORE_STOP.search(before)
    if word is None:
        return True
    token = word.group().lower()
    if token == "no":
        return not nearest.isdigit()
    if token in _ALWAYS_OPEN:
        return word.group() == "RT" and (nearest.islower() or not nearest.isascii())  # radiotherapy
    if len(token) == 1 and word.group() not in "IVX" and nearest.islower() and nearest.isascii():
        return False
    return not (token in _OPEN_BEFORE_LOWER_CASE and (nearest.islower() or nearest.isdigit() or nearest in "(,;/"))


def _before(text: str, line_start: int, end: int) -> str:
    """What stands before a stop: all of a short line, else its last characters, for a line of 100,000 has a stop every 50."""
    near = text[max(line_start, end - NEAR_CHARS) : end]
    return near if _SAYS_ENOUGH.search(near) else text[line_start:end]


def spacy_sentences(text: str, *, model: str | None = None) -> list[Span]:
    """Sentences by spaCy: a blank English pipeline with `clinical_sentences`, or the installed `model` (such as "en_core_web_sm").

    Raises:
        OSError: `model` is not installed (spaCy's own message names it).
    """
    doc = _pipeline(model)(text)
    spans = []
    for sentence in doc.sents:
        piece = sentence.text
        if piece.strip():
            begin = sentence.start_char + len(piece) - len(piece.lstrip())
            spans.append(Span(begin, begin + len(piece.strip())))
    return spans


_PIPELINES: dict[str | None, Language] = {}


def _pipeline(model: str | None) -> Language:
    if model not in _PIPELINES:
        import spacy

        if model is None:
            register_spacy_component()
            pipeline = spacy.blank("en")
            pipeline.add_pipe(SPACY_COMPONENT)
        else:
            pipeline = spacy.load(model)
        _PIPELINES[model] = pipeline
    return _PIPELINES[model]


def register_spacy_component() -> None:
    """Makes `nlp.add_pipe("clinical_sentences")` known to spaCy; repeating it does no harm."""
    from spacy.language import Language

    if not Language.has_factory(SPACY_COMPONENT):
        Language.component(SPACY_COMPONENT, func=_mark_sentences)


def _mark_sentences(doc: Doc) -> Doc:
    starts = [span.start for span in sentences(doc.text)]
    position = 0
    for token in doc:
        begins = False
        while position < len(starts) and starts[position] < token.idx + len(token):
            begins, position = True, position + 1
        token.is_sent_start = begins or token.i == 0
    return doc

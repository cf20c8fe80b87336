"""Cuts a report that is too long for the model's context into windows that are not, without losing a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from configs.contracts import Span

__all__ = ["report_windows"]


def report_windows(text: str, sentences: Sequence[Span], size: Callable[[str], int], limit: int) -> list[Span]:
    """Spans that together cover the text from the first sentence to the last; `size` of each window's text is at most `limit`.

    A window is a run of whole sentences and begins with the last sentence of the one before, so that a relation across two
    sentences stands in one window. A sentence larger than half of `limit` is cut at white space (within a word only
    if the word alone is too large) and its pieces count as sentences.

    Raises:
        ValueError: not even one character fits.
    """
    pieces = [piece for sentence in sentences for piece in _pieces(text, sentence, size, limit // 2)]
    windows: list[Span] = []
    first = 0
    while first < len(pieces):
        last = _last_that_fits(partial(_fits, text, pieces, size, limit, first), first, len(pieces))
        windows.append(Span(pieces[first].start, pieces[last].end))
        if last + 1 == len(pieces):
            break
        first = last if last > first else last + 1
    return windows


def _fits(text: str, pieces: Sequence[Span], size: Callable[[str], int], limit: int, first: int, last: int) -> bool:
    return size(text[pieces[first].start : pieces[last].end]) <= limit


def _last_that_fits(fits: Callable[[int], bool], first: int, n_pieces: int) -> int:
    """By doubling steps, then halving ones: `size` may read the whole text each time."""
    last, step = first, 1
    while last + step < n_pieces and fits(last + step):
        last, step = last + step, 2 * step
    while step:
        if last + step < n_pieces and fits(last + step):
            last += step
        step //= 2
    return last


def _pieces(text: str, span: Span, size: Callable[[str], int], limit: int) -> list[Span]:
    if size(text[span.start : span.end]) <= limit:
        return [span]
    if span.end - span.start < 2:
        raise ValueError(f"one character does not fit into {limit}")
    middle = (span.start + span.end) // 2
    breaks = [i for i in range(span.start + 1, span.end) if text[i].isspace()]
    cut = min(breaks, key=lambda i: abs(i - middle)) if breaks else middle
    return [*_pieces(text, Span(span.start, cut), size, limit), *_pieces(text, Span(cut, span.end), size, limit)]

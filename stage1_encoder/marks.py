"""Windows of a report whose tokens are marked with the entity keys that the task's keywords find there.

The keywords say where a lesion is named; whether it is seen, denied, gone or only feared is what the encoder learns from the words
around. With the marks it learns that once for all keys, and a new keyword in the task file needs no new training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.contracts import Span
from configs.mentions import Mention, entity_mentions
from configs.schema import Task
from stage1_encoder.tokenizer import ReportTokenizer


@dataclass(frozen=True, slots=True)
class MarkedWindow:
    """Token ids, `[CLS]` and `[SEP]` included; `marks` are (position in `ids`, column), sorted.

    A flag encoder's columns are the keys of the task, in its order; those of a pair encoder are in pairs.PairColumns.
    """

    ids: tuple[int, ...]
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class WindowCut:
    """How a text becomes windows: the same cut in training, in the checks and at work."""

    tokenizer: ReportTokenizer
    task: Task
    window_tokens: int
    overlap_tokens: int

    def windows(self, text: str) -> tuple[MarkedWindow, ...]:
        """At least one window; a token that touches a mention of a key is marked with it."""
        tokens = self.tokenizer.encode(text)
        columns = {key: column for column, key in enumerate(self.task.keys)}
        touched = touched_tokens(tokens.spans)
        marked = {(token, columns[mention.name]) for mention in entity_mentions(self.task, text) for token in touched(mention)}
        cut = self.tokenizer.windows(tokens.ids, window_tokens=self.window_tokens, overlap_tokens=self.overlap_tokens)
        return marked_windows(cut, sorted(marked), step_tokens=self.window_tokens - 2 - self.overlap_tokens)


def touched_tokens(spans: Sequence[Span]) -> Callable[[Mention], list[int]]:
    """The tokens that a mention touches, by number, given the tokens' spans."""
    starts = np.array([span.start for span in spans])
    ends = np.array([span.end for span in spans])

    def touched(mention: Mention) -> list[int]:
        return np.flatnonzero((starts < mention.span.end) & (ends > mention.span.start)).tolist()

    return touched


def marked_windows(
    cut: Sequence[Sequence[int]],
    marked: Sequence[tuple[int, int]],
    *,
    step_tokens: int,
    first_token: tuple[tuple[int, int], ...] = (),
) -> tuple[MarkedWindow, ...]:
    """Windows of `ReportTokenizer.windows` with the marks inside of each.

    Args:
        marked: (token of the whole text, column), sorted.
        step_tokens: From the start of a window to that of the next.
        first_token: Marks that every window has before these, positions in the window.
    """
    found, first = [], 0
    for ids in cut:
        room = len(ids) - 2
        inside = ((token - first + 1, column) for token, column in marked if first <= token < first + room)
        found.append(MarkedWindow(tuple(ids), (*first_token, *inside)))
        first += step_tokens
    return tuple(found)


def mark_matrix(window: MarkedWindow, n_marks: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[tokens, marks], 1 where a token has a mark, else 0."""
    matrix = np.zeros((len(window.ids), n_marks), dtype=np.float32)
    for position, mark in window.marks:
        matrix[position, mark] = 1.0
    return matrix

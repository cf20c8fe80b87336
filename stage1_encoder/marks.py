"""Windows of a report whose tokens are marked with the entity keys that the task's keywords find there.

The keywords say where a lesion is named; whether it is seen, denied, gone or only feared is what the encoder learns from the words
around. With the marks it learns that once for all keys, and a new keyword in the task file needs no new training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.mentions import entity_mentions
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
        marked = self._marked_tokens(text, [(span.start, span.end) for span in tokens.spans])
        found, first = [], 0
        cut = self.tokenizer.windows(tokens.ids, window_tokens=self.window_tokens, overlap_tokens=self.overlap_tokens)
        for ids in cut:
            room = len(ids) - 2
            inside = tuple((token - first + 1, key) for token, key in marked if first <= token < first + room)
            found.append(MarkedWindow(tuple(ids), inside))
            first += self.window_tokens - 2 - self.overlap_tokens
        return tuple(found)

    def _marked_tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        columns = {key: column for column, key in enumerate(self.task.keys)}
        starts = np.array([start for start, _ in spans])
        ends = np.array([end for _, end in spans])
        marked: set[tuple[int, int]] = set()
        for mention in entity_mentions(self.task, text):
            touched = np.flatnonzero((starts < mention.span.end) & (ends > mention.span.start)) if spans else ()
            marked.update((int(token), columns[mention.name]) for token in touched)
        return sorted(marked)


def mark_matrix(window: MarkedWindow, n_marks: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[tokens, marks], 1 where a token has a mark, else 0."""
    matrix = np.zeros((len(window.ids), n_marks), dtype=np.float32)
    for position, mark in window.marks:
        matrix[position, mark] = 1.0
    return matrix

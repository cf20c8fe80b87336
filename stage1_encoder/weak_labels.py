"""Flags from keywords alone: the published regex labels, which know no negation. Weak training labels and a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from configs.contracts import EntityFlags
from configs.mentions import entity_mentions
from configs.schema import Task


class KeywordFlagger:
    """A Flagger: probability 1 for every key that a text mentions anywhere, else 0."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def flag(self, texts: Sequence[str]) -> list[EntityFlags]:
        return [self._flags(text) for text in texts]

    def _flags(self, text: str) -> EntityFlags:
        mentioned = {mention.name for mention in entity_mentions(self.task, text)}
        keys = tuple(key for key in self.task.keys if key in mentioned)
        return EntityFlags({key: float(key in mentioned) for key in self.task.keys}, hinted=keys, decided=keys)

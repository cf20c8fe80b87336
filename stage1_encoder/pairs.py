"""Which values does the report give a subject? The question that the pair encoder is asked about one subject at a time.

A window is the report's, marked for the question: the subject's mentions, the values' mentions and loose wordings, the mentions of
other subjects, and which subject is asked, on the window's first token. Whether a mention of a value is the subject's, and what no
keyword says, is what the encoder learns from the words around.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from configs.loose import loose_value_mentions
from configs.mentions import entity_mentions, value_mentions
from configs.schema import Task
from stage1_encoder.marks import MarkedWindow, marked_windows, touched_tokens
from stage1_encoder.tokenizer import ReportTokenizer


@dataclass(frozen=True, slots=True)
class PairColumns:
    """What the pair encoder's logits and marks stand for.

    Logits: column 0 says that the subject is present, which is learned beside the rest and not used; then a column a value, given
    that it is. Marks: the subject's mentions in column 0, the values' in theirs, then other subjects' mentions, then a column a
    subject that says which one is asked.

    Attributes:
        subjects: Each entity that can have values beyond those that it implies, with these values.
        values: All of them, in the order of the task.
    """

    subjects: Mapping[str, tuple[str, ...]]
    values: tuple[str, ...]

    @classmethod
    def of(cls, task: Task) -> PairColumns:
        subjects = {key: values for key in task.keys if (values := task.open_values(key))}
        told = {value for values in subjects.values() for value in values}
        return cls(subjects, tuple(value for value in task.values if value in told))

    @property
    def n_logits(self) -> int:
        """Presence and the values."""
        return 1 + len(self.values)

    @property
    def n_marks(self) -> int:
        """Those of the logits, other subjects, and the subject asked."""
        return self.n_logits + 1 + len(self.subjects)

    def value(self, value: str) -> int:
        """Column of a value."""
        return 1 + self.values.index(value)

    def asked(self, subject: str) -> int:
        """Column that says which subject is asked."""
        return self.n_logits + 1 + list(self.subjects).index(subject)


@dataclass(frozen=True)
class PairCut:
    """How a text and a subject become windows: the same cut in training, in the checks and at work."""

    tokenizer: ReportTokenizer
    task: Task
    window_tokens: int
    overlap_tokens: int

    @cached_property
    def columns(self) -> PairColumns:
        """Those of the task."""
        return PairColumns.of(self.task)

    def windows(self, text: str, subjects: Collection[str]) -> dict[str, tuple[MarkedWindow, ...]]:
        """At least one window for each subject; the text is cut once for all of them."""
        tokens = self.tokenizer.encode(text)
        touched = touched_tokens(tokens.spans)
        entities = [(m.name, touched(m)) for m in entity_mentions(self.task, text)]
        told = [*value_mentions(self.task, text), *loose_value_mentions(self.task, text)]
        values = [mention for mention in told if mention.name in self.columns.values]
        said = {(token, self.columns.value(mention.name)) for mention in values for token in touched(mention)}
        cut = list(self.tokenizer.windows(tokens.ids, window_tokens=self.window_tokens, overlap_tokens=self.overlap_tokens))
        step_tokens = self.window_tokens - 2 - self.overlap_tokens
        found = {}
        for subject in subjects:
            marked = said | {(token, 0 if name == subject else self.columns.n_logits) for name, at in entities for token in at}
            asked = (0, self.columns.asked(subject))
            found[subject] = marked_windows(cut, sorted(marked), step_tokens=step_tokens, first_token=(asked,))
        return found

"""The types and seams that every layer shares: what a report, a flag, a relation and a record are.

Everything here is plain data or a one-method protocol; nothing imports torch, spaCy or llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Status = Literal["ok", "no_findings", "failed", "rejected"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Characters `[start, end)` of the text as given."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"span [{self.start}, {self.end}) is empty or negative")


@dataclass(frozen=True, slots=True)
class Report:
    """One free-text report. `study_date` is kept as the input wrote it; None means the input had none."""

    report_id: str
    text: str
    patient_id: str | None = None
    study_date: str | None = None


@dataclass(frozen=True, slots=True)
class EntityFlags:
    """What a flagger says of one report: entity key to probability in [0, 1] that it is stated as present.

    `hinted` are the keys over the recall-first threshold, `decided` those over the decision threshold, both
    in the order of the task file. `decided` need not be a subset of `hinted` for a badly calibrated user model.
    """

    probability: Mapping[str, float]
    hinted: tuple[str, ...]
    decided: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """One subject–value pair. `confidence` is in [0, 1]; None means that rules decided it, which give none.

    A value that the subject implies (an effusion is pleural) has the subject's span as its own. A span is None where no keyword
    knows the report's wording.
    """

    subject: str
    value: str
    confidence: float | None = None
    subject_span: Span | None = None
    value_span: Span | None = None


@dataclass(frozen=True, slots=True)
class EntityFinding:
    """The decision about one entity key. `spans` are its asserted mentions when present, else empty.

    `confidence` is the probability in [0, 1] that the key is present, whatever was decided; None means the system gives none.
    """

    key: str
    present: bool
    confidence: float | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """A mapper's answer for one report: one finding for every key of the task, and the relations."""

    entities: tuple[EntityFinding, ...]
    relations: tuple[Relation, ...]


@dataclass(frozen=True, slots=True)
class Unread:
    """A report that a mapper could not read, and why. Never holds report text."""

    problem: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A language model's answer. `token_logprobs` is one natural-log probability a generated token; None = not given.

    `finished` is False when the model stopped at its token limit, so the text may be cut.
    """

    text: str
    token_logprobs: tuple[float, ...] | None = None
    finished: bool = True


@dataclass(frozen=True, slots=True)
class TaggedReport:
    """The record of one report (DESIGN: "The record"). entities and relations are None unless status is ok or no_findings.

    `patient_id` and `study_date` are those of the report; None where the input had none.
    """

    report_id: str
    task: str
    status: Status
    entities: tuple[EntityFinding, ...] | None
    relations: tuple[Relation, ...] | None
    hints: tuple[str, ...] | None
    problem: str | None
    provenance: Mapping[str, str] = field(default_factory=dict)
    patient_id: str | None = None
    study_date: str | None = None


class Flagger(Protocol):
    """Stage 1: which entity keys does each text state as present?"""

    def flag(self, texts: Sequence[str]) -> list[EntityFlags]:
        """One result a text, in order."""
        ...


class SubjectReader(Protocol):
    """Stage 1's second question: which values does a text give these subjects?"""

    def read(self, text: str, subjects: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """By subject, the log-odds (natural) of each value, given that the subject is present.

        Subjects that can have no value beyond the implied ones are left out.
        """
        ...


class LanguageModel(Protocol):
    """A causal language model that completes a chat prompt under an optional GBNF grammar."""

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        """Greedy completion. Raises LanguageModelError (stage2_relations.language_model) when no answer can be had."""
        ...


class RelationMapper(Protocol):
    """Stage 2: texts and hints to readings. A report that cannot be read gives Unread; others go on."""

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report, in order. flags[i] is None where no stage 1 ran."""
        ...


class Source(Protocol):
    """Where reports come from."""

    def reports(self) -> Iterable[Report]:
        """In input order; each call starts from the beginning."""
        ...


class Sink(Protocol):
    """Where records go."""

    def write(self, records: Iterable[TaggedReport]) -> int:
        """Returns how many were written."""
        ...


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A chat prompt in two parts, so that a model can keep `prefix` (equal for every report of a task step) in its cache.

    `prefix` and `body` are joined without a separator to the user message; `system` may be empty. `answer_prefix` is the forced
    beginning of the answer (it is not part of the completion's text).
    """

    system: str
    prefix: str
    body: str
    answer_prefix: str = ""

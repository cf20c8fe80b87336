"""The question in its shortest form, for adapted models: one branch a subject, one letter a value.

    ### Target Lesions: nodule, consolidation
    ### Output:
    nodule > <report> Rt upper lobe (RUL) 결절 (nodule) … </report>
    nodule:          ← the scores of the next tokens " A", " B" … are read here, and nothing is generated

A branch shows the sentences about its subject, and names it first: a causal model reads on with it in mind. Where the report does
not name one of the subjects asked, the whole report stands before the hint line. A keyword's label stands in brackets behind it
wherever the report words it otherwise: the default model knows hardly any Korean, and which word means which key is settled by the
task file anyway. Whether it is denied, and what belongs to what, is the model's to read.

Every branch sees the hint line, never another branch. Letter i stands for the step's i-th value, `Z` for
"not present"; each counts against `Y`, so that one subject can have several values: P(value) = sigmoid(score(value) - score(Y)).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from configs.contracts import Span
from configs.loose import loose_value_mentions
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import ConfigError, Task
from stage2_relations.prompt import REPORT_END, REPORT_START, quoted_report
from stage2_relations.sentences import sentences

__all__ = ["ABSENT", "QUESTION_FORMAT", "REFERENCE", "Branch", "BranchModel", "BranchPrompt", "BranchTokenCounter", "Question"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"
ABSENT, REFERENCE = " Z", " Y"
# Goes up with every change of the wording: an adapter answers only the question that it was trained on.
QUESTION_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Branch:
    """What one subject can be answered; `letters` maps each value that it can have to its token's text."""

    subject: str
    letters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """The texts of one question: the trunk, and a branch for each subject asked, in their order.

    Attributes:
        values: What each branch shows, as the values that its sentences mention or may tell in loose words; None where it reads the
            whole report.
    """

    trunk: str
    branches: tuple[str, ...]
    values: tuple[frozenset[str] | None, ...] = ()


@runtime_checkable
class BranchModel(Protocol):
    """A causal language model whose scores can be read at the ends of several branches of one text."""

    def branch_logits(self, trunk: str, branches: Sequence[str], letters: Sequence[str]) -> list[tuple[float, ...]]:
        """Scores (unnormalised, natural log) of each letter as the next token after trunk + branch; one tuple a branch, in order.

        Raises:
            LanguageModelError: a letter is no single token, the text does not fit, or the model fails.
        """
        ...


@runtime_checkable
class BranchTokenCounter(Protocol):
    """A BranchModel that knows its context: lets long reports be read in windows instead of failing."""

    @property
    def context_tokens(self) -> int:
        """Tokens that a trunk and its branches may have together."""
        ...

    def count_branch_tokens(self, trunk: str, branches: Sequence[str]) -> int:
        """Tokens of a trunk and its branches."""
        ...


class BranchPrompt:
    """Trunk and branches of a task."""

    def __init__(self, task: Task) -> None:
        """Raises ConfigError where a subject can have more values than there are letters."""
        self._task = task
        self._heading = task.steps[0].prompt.heading
        self._branches = {key: self._branch(key) for key in task.keys}

    @property
    def letters(self) -> tuple[str, ...]:
        """Every letter of the task; the last two are ABSENT and REFERENCE."""
        used = dict.fromkeys(letter for branch in self._branches.values() for letter in branch.letters.values())
        return (*sorted(used), ABSENT, REFERENCE)

    def question(self, report_text: str, hinted: Sequence[str], asked: Sequence[str]) -> Question:
        """The hint line, which names the subjects that stage 1 flags, and a branch for each subject asked."""
        shown = _Shown.of(self._task, report_text)
        chosen = [shown.about(key, self._branches[key].letters) for key in asked]
        excerpts = [quoted_report(shown.excerpt(indexes)) for indexes in chosen]
        whole = "" if all(excerpts) else f"### Report:\n{REPORT_START} {quoted_report(shown.whole)} {REPORT_END}\n"
        labels = ", ".join(self._task.label(key) for key in hinted)
        return Question(
            f"{whole}### {self._heading}: {labels}\n### Output:",
            tuple(self._branch_text(key, excerpt) for key, excerpt in zip(asked, excerpts, strict=True)),
            tuple(
                frozenset().union(*(shown.values[i] | shown.loose[i] for i in indexes)) if indexes else None for indexes in chosen
            ),
        )

    def _branch_text(self, key: str, excerpt: str) -> str:
        label = self._task.label(key)
        said = f"\n{label} > {REPORT_START} {excerpt} {REPORT_END}" if excerpt else ""
        return f"{said}\n{label}:"

    def branch(self, key: str) -> Branch:
        """The branch of an entity key."""
        return self._branches[key]

    def _branch(self, key: str) -> Branch:
        values: dict[str, None] = {}
        offset = 0
        letters: dict[str, str] = {}
        for step in self._task.steps:
            if step.kind != "relation":
                continue
            if key in step.subjects:
                values = dict.fromkeys(self._task.allowed_values(key, step))
                for place, value in enumerate(step.values):
                    if value in values and value not in self._task.entities[key].implied:
                        letters[value] = self._letter(offset + place)
            offset += len(step.values)
        return Branch(key, letters)

    def _letter(self, place: int) -> str:
        if place >= len(LETTERS):
            raise ConfigError(f"{self._task.path}: has more than {len(LETTERS)} values, which cannot be read by letters")
        return f" {LETTERS[place]}"


@dataclass(frozen=True, slots=True)
class _Shown:
    """A report's sentences with what they mention, and the labels that stand in brackets behind its keywords."""

    text: str
    sentences: Sequence[Span]
    entities: Sequence[frozenset[str]]
    values: Sequence[frozenset[str]]
    loose: Sequence[frozenset[str]]
    glosses: Mapping[int, str]

    @classmethod
    def of(cls, task: Task, text: str) -> _Shown:
        entities, values = entity_mentions(task, text), value_mentions(task, text)
        spans = sentences(text)
        glosses: dict[int, dict[str, None]] = {}
        for mention in (*entities, *values):
            label = task.label(mention.name)
            if " ".join(text[mention.span.start : mention.span.end].split()).casefold() != label.casefold():
                glosses.setdefault(mention.span.end, {})[label] = None
        return cls(
            text,
            spans,
            _names_by_sentence(entities, spans),
            _names_by_sentence(values, spans),
            _names_by_sentence(loose_value_mentions(task, text), spans),
            {end: f" ({', '.join(labels)})" for end, labels in glosses.items()},
        )

    @property
    def whole(self) -> str:
        """All of it, glossed."""
        return self.glossed(0, len(self.text))

    def glossed(self, start: int, end: int) -> str:
        """The text [start, end) with ` (label)` behind each mention that does not spell the label already."""
        parts, done = [], start
        for place in sorted(place for place in self.glosses if start < place <= end):
            parts.append(self.text[done:place] + self.glosses[place])
            done = place
        return "".join([*parts, self.text[done:end]])

    def about(self, key: str, values: Collection[str]) -> list[int]:
        """The indexes of the sentences about a subject; empty where none names it.

        They are those that name it, the sentence after each unless it names another subject, and sentences about no subject that
        name a value: those beside them and the last one before them (a heading). Where none of these names a value, also all that
        name one and no subject (a conclusion), the nearest sentence before that names one, whatever else it names ("mass in RUL.
        Biopsy advised. GGO around it."), and the next if it does.
        """
        named = {index for index, names in enumerate(self.entities) if key in names}
        if not named:
            return []
        told = {index for index, said in enumerate(self.values) if not said.isdisjoint(values)}
        free = {index for index, names in enumerate(self.entities) if not names}
        bare = told & free
        chosen = named | {index + 1 for index in named if index + 1 in free} | {index - 1 for index in named if index - 1 in bare}
        chosen |= {max(before) for index in named if (before := [i for i in bare if i < index])}
        if not chosen & told:
            chosen |= bare | {index + 1 for index in named if index + 1 in told}
            chosen |= {max(before) for index in named if (before := [i for i in told if i < index])}
        return sorted(chosen)

    def excerpt(self, indexes: Sequence[int]) -> str:
        """These sentences, glossed, `…` between those that are apart."""
        parts: list[str] = []
        for index in indexes:
            if parts and index - 1 not in indexes:
                parts.append("…")
            parts.append(self.glossed(self.sentences[index].start, self.sentences[index].end))
        return " ".join(parts)


def _names_by_sentence(mentions: Sequence[Mention], spans: Sequence[Span]) -> list[frozenset[str]]:
    starts = [span.start for span in spans]
    names: list[set[str]] = [set() for _ in spans]
    for mention in mentions:
        place = bisect_right(starts, mention.span.start) - 1
        if place >= 0:
            names[place].add(mention.name)
    return [frozenset(found) for found in names]

"""The question in its shortest form, for adapted models: one report, one branch a subject, one letter a value.

    ### Report:
    <report> Rt upper lobe (RUL) 결절 (nodule) … </report>
    ### Target Lesions: nodule, consolidation
    ### Output:
    nodule:          ← the scores of the next tokens " A", " B" … are read here, and nothing is generated

A keyword's label stands in brackets behind it wherever the report words it otherwise: the default model knows hardly any Korean,
and which word means which key is settled by the task file anyway. Whether it is denied, and what belongs to what, is the model's
to read.

Every branch sees the report and the hint line, never another branch. Letter i stands for the step's i-th value, `Z` for
"not present"; each counts against `Y`, so that one subject can have several values: P(value) = sigmoid(score(value) - score(Y)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from configs.mentions import entity_mentions, value_mentions
from configs.schema import ConfigError, Task
from stage2_relations.prompt import REPORT_END, REPORT_START, quoted_report

__all__ = ["ABSENT", "REFERENCE", "Branch", "BranchModel", "BranchPrompt", "BranchTokenCounter"]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWX"
ABSENT, REFERENCE = " Z", " Y"


@dataclass(frozen=True, slots=True)
class Branch:
    """One subject's question. `text` follows the trunk; `letters` maps each value that it can have to its token's text."""

    subject: str
    text: str
    letters: Mapping[str, str]


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

    def trunk(self, report_text: str, hinted: Sequence[str]) -> str:
        """The report and the hint line, which names the subjects that stage 1 flags."""
        labels = ", ".join(self._task.label(key) for key in hinted)
        report = quoted_report(self._glossed(report_text))
        return f"### Report:\n{REPORT_START} {report} {REPORT_END}\n### {self._heading}: {labels}\n### Output:"

    def _glossed(self, text: str) -> str:
        """The text with ` (label)` behind each mention that does not spell the label already."""
        glosses: dict[int, dict[str, None]] = {}
        for mention in (*entity_mentions(self._task, text), *value_mentions(self._task, text)):
            label = self._task.label(mention.name)
            if " ".join(text[mention.span.start : mention.span.end].split()).casefold() != label.casefold():
                glosses.setdefault(mention.span.end, {})[label] = None
        parts, done = [], 0
        for end in sorted(glosses):
            parts.append(f"{text[done:end]} ({', '.join(glosses[end])})")
            done = end
        return "".join([*parts, text[done:]])

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
        return Branch(key, f"\n{self._task.label(key)}:", letters)

    def _letter(self, place: int) -> str:
        if place >= len(LETTERS):
            raise ConfigError(f"{self._task.path}: has more than {len(LETTERS)} values, which cannot be read by letters")
        return f" {LETTERS[place]}"

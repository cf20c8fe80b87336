"""Training examples of an adapter: one report, the subjects it is asked about, and which letter each should get."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from configs.mentions import entity_mentions, value_mentions
from configs.schema import Task
from stage2_relations.branches import ABSENT, BranchPrompt
from training.augment import LabelledText, SurfaceForms
from training.corpus import AnnotatedReport
from training.flag_examples import augmented
from training.settings import AugmentationSettings, HintSettings

Tokenise = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class BranchTarget:
    """`letters` are columns of BranchPrompt.letters, `targets` 0 or 1 for each, `weights` what each counts in the loss."""

    subject: str
    text: str
    tokens: tuple[int, ...]
    letters: tuple[int, ...]
    targets: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AdapterExample:
    """The trunk as text and as tokens, and the branches that follow it."""

    text: str
    trunk: tuple[int, ...]
    branches: tuple[BranchTarget, ...]

    @property
    def n_tokens(self) -> int:
        """Trunk and branches together."""
        return len(self.trunk) + sum(len(branch.tokens) for branch in self.branches)


class AdapterExamples:
    """Draws an epoch's examples from annotated reports: hints with errors such as stage 1 makes, texts augmented.

    Args:
        trunk_tokens, branch_tokens: The model's own tokens of the two kinds of text.
        limit_tokens: Reports whose question is longer are left out; `n_left_out` counts them as given.
    """

    def __init__(
        self,
        task: Task,
        reports: Sequence[AnnotatedReport],
        trunk_tokens: Tokenise,
        branch_tokens: Tokenise,
        *,
        augmentation: AugmentationSettings,
        hints: HintSettings,
        copies: int,
        seed: int,
        limit_tokens: int,
    ) -> None:
        self._task, self._trunk_tokens, self._hints, self._seed, self._limit = task, trunk_tokens, hints, seed, limit_tokens
        self._augmentation, self._copies = augmentation, copies
        self._prompt = BranchPrompt(task)
        self._columns = {letter: column for column, letter in enumerate(self._prompt.letters)}
        self._branch_tokens = branch_tokens
        self._texts = [LabelledText(item.report.text, item.labels) for item in reports]
        self._forms = SurfaceForms.of(task, self._texts)
        as_given = [self.example(text, random.Random(0)) for text in self._texts]
        self._texts = [t for t, e in zip(self._texts, as_given, strict=True) if e.branches and e.n_tokens <= limit_tokens]
        self.n_left_out = sum(example.n_tokens > limit_tokens for example in as_given)

    def examples(self, epoch: int) -> list[AdapterExample]:
        """A pure function of the epoch's number, and as many in every epoch."""
        found = []
        for copy in range(self._copies):
            for index, text in enumerate(self._texts):
                rng = random.Random(f"{self._seed}/{epoch}/{copy}/{index}/adapter")
                changed = augmented(self._task, text, self._texts, self._forms, self._augmentation, rng) if copy or epoch else text
                example = self.example(changed, rng)
                if not example.branches or example.n_tokens > self._limit:
                    example = self.example(text, random.Random(0))  # the draw that let the report in
                found.append(example)
        return found

    def example(self, text: LabelledText, rng: random.Random) -> AdapterExample:
        """One draw of hints for one text."""
        hints = self._hints
        named = {mention.name for mention in entity_mentions(self._task, text.text)}
        hinted: list[str] = []
        asked: list[str] = []
        without = rng.random() < hints.none
        for key in self._task.keys:
            if key in text.labels:
                is_hinted, is_asked = rng.random() >= hints.missed, True
            else:
                is_hinted = rng.random() < (hints.wrong_named if key in named else hints.wrong_unnamed)
                is_asked = is_hinted or (key in named and (without or rng.random() < hints.wrong_named))
            hinted += [key] if is_hinted and not without else []
            asked += [key] if is_asked else []
        if not asked:  # a report that only denies its keys is worth asking about too
            asked = [key for key in self._task.keys if key in named]
        mentioned = {mention.name for mention in value_mentions(self._task, text.text)}
        question = self._prompt.question(text.text, hinted, asked)
        branches = tuple(self._target(key, said, text, mentioned) for key, said in zip(asked, question.branches, strict=True))
        return AdapterExample(question.trunk, self._trunk_tokens(question.trunk), branches)

    def _target(self, key: str, said: str, text: LabelledText, mentioned: set[str]) -> BranchTarget:
        branch = self._prompt.branch(key)
        present = key in text.labels
        values = text.labels.get(key, ())
        letters = [(letter, float(value in values), 1.0 if value in mentioned else self._hints.unmentioned_weight)
                   for value, letter in branch.letters.items()]  # fmt: skip
        letters.append((ABSENT, float(not present), 1.0))
        return BranchTarget(
            key,
            said,
            self._branch_tokens(said),
            tuple(self._columns[letter] for letter, _, _ in letters),
            tuple(target for _, target, _ in letters),
            tuple(weight for _, _, weight in letters),
        )

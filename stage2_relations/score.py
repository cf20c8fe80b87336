"""Stage 2 by scores: one branch a subject with the sentences about it, and the log-odds of every value at one position.

What the model says is weighed against what stage 1 and the rules say (combine.py). Nothing is generated, so nothing can be
unreadable; a value that the report does not mention is never offered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from configs.contracts import EntityFinding, EntityFlags, Reading, Relation, Report, SubjectReader, Unread
from configs.schema import Task
from stage2_relations.branches import ABSENT, BranchModel, BranchPrompt, BranchTokenCounter, Question
from stage2_relations.combine import LARGEST_LOG_ODDS, Combination, bounded_log_odds, log_odds
from stage2_relations.ground import Evidence, EvidenceReader, implied_values
from stage2_relations.language_model import LanguageModelError
from stage2_relations.windows import report_windows

__all__ = ["BranchMapper", "ReportScores", "presence_features", "relation_features"]

THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class ReportScores:
    """What the model says of one report: log-odds of presence for every subject asked, and of each value it was offered.

    `hidden`: the values that no branch of a subject shows; their log-odds say nothing. `pairs`: the log-odds of the pair
    encoder by subject; empty where there is none.
    """

    presence: Mapping[str, float]
    values: Mapping[str, Mapping[str, float]]
    hidden: Mapping[str, Collection[str]]
    pairs: Mapping[str, Mapping[str, float]]


class BranchMapper:
    """A RelationMapper over a BranchModel, a pair encoder or both, and the weights that combine them with stage 1 and the rules.

    With flags the subjects asked are those that stage 1 hints or decides, and those that the rules find asserted though stage 1
    missed them. Without flags they are all that the text names. Those that no answer could make present are not asked.
    """

    def __init__(
        self,
        task: Task,
        model: BranchModel | None,
        combination: Combination,
        *,
        pairs: SubjectReader | None = None,
        grounding: bool = True,
    ) -> None:
        """`grounding` offers only values that the report mentions; without it every value of the subject is offered.

        `model` and `pairs` are those that the combination's weights are for; None goes with weights for the other alone.

        Raises:
            ConfigError: a subject can have more values than there are letters.
        """
        self._task, self._model, self._combination, self._grounding = task, model, combination, grounding
        self._pairs = pairs
        self._evidence = EvidenceReader(task)
        self._prompt = BranchPrompt(task)

    @property
    def has_pairs(self) -> bool:
        """Whether a pair encoder reads too."""
        return self._pairs is not None

    @property
    def token_counts(self) -> Mapping[str, int]:
        """Those of the model and of the pair encoder; a part that counts none is left out."""
        parts: list[Mapping[str, int]] = [getattr(part, "token_counts", {}) for part in (self._model, self._pairs)]
        return {name: count for part in parts for name, count in part.items()}

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report; a report that the model cannot read is Unread, and the others go on."""
        return [self._relate_one(report, flag) for report, flag in zip(reports, flags, strict=True)]

    def _relate_one(self, report: Report, flags: EntityFlags | None) -> Reading | Unread:
        try:
            evidence, scores = self.scores(report.text, flags)
        except LanguageModelError as error:
            return Unread(str(error))
        return self._reading(evidence, flags, scores)

    def scores(self, text: str, flags: EntityFlags | None) -> tuple[Evidence, ReportScores]:
        """The evidence in a text and the model's scores. Raises LanguageModelError."""
        evidence = self._evidence.read(text)
        asked = tuple(key for key in self._candidates(evidence, flags) if self._can_be_present(key, evidence, flags))
        if not asked:
            return evidence, ReportScores({}, {}, {}, {})
        pairs = {} if self._pairs is None else self._pairs.read(text, asked)
        hinted = () if flags is None else tuple(key for key in self._task.keys if key in flags.hinted)
        if self._model is None:
            unread = {key: dict.fromkeys(self._offered(evidence, key), 0.0) for key in asked}
            return evidence, ReportScores(dict.fromkeys(asked, 0.0), unread, dict.fromkeys(asked, ()), pairs)
        presence: dict[str, float] = {}
        values: dict[str, dict[str, float]] = {key: {} for key in asked}
        seen: dict[str, set[str]] = {key: set() for key in asked}
        for question in self._questions(evidence, hinted, asked):
            for key, of_branch in zip(asked, question.values, strict=True):
                seen[key] |= set(self._prompt.branch(key).letters) if of_branch is None else of_branch
            for key, letters in self._read(self._model, question, asked).items():
                presence[key] = max(presence.get(key, -letters[ABSENT]), -letters[ABSENT])
                for value, letter in self._prompt.branch(key).letters.items():
                    values[key][value] = max(values[key].get(value, letters[letter]), letters[letter])
        offered = {key: {v: values[key][v] for v in self._offered(evidence, key)} for key in asked}
        return evidence, ReportScores(presence, offered, {key: offered[key].keys() - seen[key] for key in asked}, pairs)

    def _candidates(self, evidence: Evidence, flags: EntityFlags | None) -> tuple[str, ...]:
        return tuple(
            key
            for key in self._task.keys
            if (flags is not None and (key in flags.hinted or key in flags.decided))
            or (evidence.names([key]) if flags is None else evidence.asserts([key]))
        )

    def _can_be_present(self, key: str, evidence: Evidence, flags: EntityFlags | None) -> bool:
        """Saves the reading of a whole report for a weak hint at a key that it does not name; decisions stay the same."""
        without = presence_features(key, evidence, flags, model=0.0)
        surest = (self._combination.presence({**without, "model": sign * LARGEST_LOG_ODDS}) for sign in (-1, 1))
        return max(surest) >= THRESHOLD

    def _read(self, model: BranchModel, question: Question, asked: Sequence[str]) -> dict[str, dict[str, float]]:
        """Log-odds of every letter against the reference, by subject."""
        letters = self._prompt.letters
        rows = model.branch_logits(question.trunk, question.branches, letters)
        return {
            key: {letter: score - row[-1] for letter, score in zip(letters, row, strict=True)}
            for key, row in zip(asked, rows, strict=True)
        }

    def _questions(self, evidence: Evidence, hinted: Sequence[str], asked: Sequence[str]) -> list[Question]:
        """One about the whole report where it fits, else one a window."""

        def about(part: str) -> Question:
            return self._prompt.question(part, hinted, asked)

        model, whole = self._model, about(evidence.text)
        if not isinstance(model, BranchTokenCounter):
            return [whole]

        def size(question: Question) -> int:
            return model.count_branch_tokens(question.trunk, question.branches)

        if size(whole) <= model.context_tokens:
            return [whole]
        without = size(about(""))
        try:
            windows = report_windows(
                evidence.text,
                evidence.mentions.sentences,
                lambda part: size(about(part)) - without,
                model.context_tokens - without,
            )
        except ValueError:
            raise LanguageModelError(
                f"context of {model.context_tokens} tokens is too small: the question without a report has {without}"
            ) from None
        return [about(evidence.text[window.start : window.end]) for window in windows]

    def _offered(self, evidence: Evidence, key: str) -> list[str]:
        values = self._prompt.branch(key).letters
        if not self._grounding:
            return list(values)
        mentioned = {mention.name for mention in evidence.mentions.values if mention.assertion == "present"}
        mentioned |= evidence.linked_values(key) | {mention.name for mention in evidence.loose}
        return [value for value in values if value in mentioned]

    def _reading(self, evidence: Evidence, flags: EntityFlags | None, scores: ReportScores) -> Reading:
        findings = []
        relations = []
        candidates = self._candidates(evidence, flags)
        for key in self._task.keys:
            if key not in candidates:
                findings.append(EntityFinding(key, False, None if flags is None else flags.probability[key]))
                continue
            # A candidate that was not asked is absent whatever the model says: 0 says nothing either way.
            model = scores.presence.get(key, 0.0)
            probability = self._combination.presence(presence_features(key, evidence, flags, model=model))
            present = probability >= THRESHOLD
            findings.append(EntityFinding(key, present, probability, evidence.asserted_spans(key) if present else ()))
            if not present:
                continue
            relations += [Relation(key, value, probability) for value in implied_values(self._task, key)]
            for value in scores.values[key]:
                given_presence = self._combination.relation(relation_features(key, value, evidence, scores))
                if given_presence >= THRESHOLD:
                    relations.append(Relation(key, value, probability * given_presence))
        ordered = sorted(relations, key=lambda relation: list(self._task.values).index(relation.value))
        ordered.sort(key=lambda relation: self._task.keys.index(relation.subject))
        return Reading(tuple(findings), tuple(evidence.grounded(ordered, drop=self._grounding, loose=True)))


def presence_features(key: str, evidence: Evidence, flags: EntityFlags | None, *, model: float) -> dict[str, float]:
    """By the names of PRESENCE_FEATURES: log-odds of stage 1 and of the model, and whether the rules assert or name the key."""
    return {
        "encoder": 0.0 if flags is None else log_odds(flags.probability[key]),
        "model": bounded_log_odds(model),
        "asserted": float(evidence.asserts([key])),
        "named": float(evidence.names([key])),
    }


def relation_features(key: str, value: str, evidence: Evidence, scores: ReportScores) -> dict[str, float]:
    """By the names of RELATION_FEATURES: the model's log-odds, the rules' link, how near the value's nearest mention stands.

    `other_side`: the task gives the value a side, and the sentences that assert the subject name the other side alone. `hidden`:
    the model was not shown the value's sentence, so its log-odds count as 0. `loose`: no keyword of the value stands in the report,
    only wordings or sizes that may tell it; `linked_unnamed`: none stands there, and the rules link it all the same, by sizes they
    compare. They count there, and neither encoder nor model reads numbers well.
    """
    linked = evidence.linked_values(key)
    named = any(mention.name == value and mention.assertion == "present" for mention in evidence.mentions.values)
    distance = _sentences_apart(evidence, key, value)
    return {
        "pairs": bounded_log_odds(scores.pairs[key][value]) if key in scores.pairs else 0.0,
        "model": 0.0 if value in scores.hidden[key] else bounded_log_odds(scores.values[key][value]),
        "linked": float(value in linked),
        "linked_elsewhere": float(bool(linked) and value not in linked),
        "same_sentence": float(distance == 0),
        "next_sentence": float(distance == 1),
        "other_side": float(_is_on_the_other_side(evidence, key, value)),
        "hidden": float(value in scores.hidden[key]),
        "loose": float(value not in linked and not named),
        "linked_unnamed": float(value in linked and not named),
    }


def _sentences_apart(evidence: Evidence, key: str, value: str) -> int | None:
    homes = evidence.home_sentences(key)
    places = {m.sentence for m in evidence.mentions.values if m.name == value and m.assertion == "present"}
    return min((abs(home - place) for home in homes for place in places), default=None)


def _is_on_the_other_side(evidence: Evidence, key: str, value: str) -> bool:
    values = evidence.task.values
    homes = evidence.home_sentences(key)
    said = {values[m.name].side for m in evidence.mentions.values if m.sentence in homes and m.assertion == "present"}
    side = values[value].side
    return side is not None and bool(said) and None not in said and side not in said

"""Stage 2 by a language model: asks, step by step, what a report says of the hinted subjects, and grounds the answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from configs.contracts import EntityFinding, EntityFlags, LanguageModel, Reading, Relation, Report, Span, Unread
from configs.schema import Step, Task
from stage2_relations.confidence import presence_probability, span_probability
from stage2_relations.grammar import AnswerLine, answer_grammar, longest_answer_bytes
from stage2_relations.ground import Evidence, EvidenceReader, Linking, implied_values
from stage2_relations.language_model import LanguageModelError, TokenCounter
from stage2_relations.parse import AnswerError, parse_answer
from stage2_relations.prompt import StepPrompt
from stage2_relations.windows import report_windows

__all__ = ["Asked", "LanguageModelMapper", "RejectPolicy"]

RejectPolicy = Literal["unasserted", "undecided", "any", "never"]
"""Which flagged subjects may turn out not present.

`unasserted`: those that the report does not assert by the task's keywords, unless it never names them and stage 1 is sure (`sure`).
`undecided`: all that stage 1 hinted but did not decide. `any`: all. `never`: none.
With every present key hinted and none decided, the raw default model keeps 6 of 102 keys under `undecided` on 30 chest CT reports.
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What other answers of the model could have changed in a reading; text, rules and stage 1 settled the rest.

    Attributes:
        keys: Those whose presence was asked, of themselves or of their groups.
        relations: (subject, value) that was offered and could have been left out; every relation of `keys` is open besides.
    """

    keys: frozenset[str]
    relations: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a step found of a subject: the probability of presence, and its values with theirs (None: the model did not choose).

    `may_be_absent` and `optional_values` are what the model could have answered otherwise.
    """

    present: bool
    presence: float | None
    values: Mapping[str, float | None]
    may_be_absent: bool = False
    optional_values: frozenset[str] = frozenset()


class LanguageModelMapper:
    """A RelationMapper that puts each step of a task to a language model.

    With flags only hinted or decided subjects are asked; without a hint the model is not called. Without flags (None) every
    subject is asked, and each may be rejected. A question with one possible answer is not put to the model.
    """

    def __init__(
        self,
        task: Task,
        model: LanguageModel,
        *,
        grounding: bool = True,
        reject: RejectPolicy = "unasserted",
        linking: Linking = "rules",
        sure: float = 1.0,
        examples_seed: int | None = None,
    ) -> None:
        """Checks the task's labels.

        Args:
            task: What is asked.
            model: If it is a TokenCounter too, reports too long for its context are read in windows of whole sentences.
            grounding: Offer only values that the report mentions, drop a relation whose value it does not mention, and reject
                without asking a subject that may be rejected and has no asserted mention.
            reject: Which flagged subjects may turn out not present (see RejectPolicy); without flags any may.
            linking: With grounding, what the text itself decides about values before the model is asked (see ground.Linking).
            sure: Stage-1 probability from which a subject that the text never names is kept; 1.0 keeps none. On 800 CT-RATE reports
                keeping those from 0.97 cost 1.1 points of key micro F1 (90.9 against 92.0), from 0.99 0.4.
            examples_seed: Another order of the prompts' worked examples (see prompt.StepPrompt).

        Raises:
            ConfigError: a label that could be taken for another part of an answer.
        """
        self._task = task
        self._model = model
        self._grounding = grounding
        self._reject = reject
        self._sure = sure
        self._linking: Linking = linking
        self._evidence = EvidenceReader(task)
        self._prompts = {step.name: StepPrompt(task, step, examples_seed=examples_seed) for step in task.steps}

    @property
    def token_counts(self) -> Mapping[str, int]:
        """Those of the model; empty where it counts none."""
        counts: Mapping[str, int] = getattr(self._model, "token_counts", {})
        return counts

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report; a report whose answers cannot be had or read is Unread, and the others go on."""
        read = self.relate_asked(reports, flags)
        return [result if isinstance(result, Unread) else result[0] for result in read]

    def relate_asked(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[tuple[Reading, Asked] | Unread]:
        """As `relate`, and what of each reading was the model's to say."""
        return [self._relate_one(report, flag) for report, flag in zip(reports, flags, strict=True)]

    def _relate_one(self, report: Report, flags: EntityFlags | None) -> tuple[Reading, Asked] | Unread:
        evidence = self._evidence.read(report.text)
        found: dict[str, dict[str, _Answer]] = {}
        for step in self._task.steps:
            lines = self._lines(step, evidence, flags, found)
            dismissed = [line for line in lines if self._is_dismissed(line, evidence, flags)]
            open_lines = [line for line in lines if line not in dismissed]
            try:
                answers = self._ask_step(step, evidence, open_lines)
            except (LanguageModelError, AnswerError) as error:
                return Unread(f"step '{step.name}': {error}")
            found[step.name] = answers | {line.subject: _Answer(False, None, {}) for line in dismissed}
        return self._reading(evidence, flags, found), self._asked(evidence, flags, found)

    def _lines(
        self, step: Step, evidence: Evidence, flags: EntityFlags | None, found: Mapping[str, Mapping[str, _Answer]]
    ) -> list[AnswerLine]:
        lines = []
        for subject in step.subjects:
            names = {subject, *(group for group, inside in self._task.groups.items() if subject in inside)}
            earlier = found.get(step.only_if_present or "", {})
            if step.only_if_present is not None and not any(earlier[name].present for name in names if name in earlier):
                continue
            members = self._flagged(subject, flags)
            if not members:
                continue
            settled = any(subject in answers for answers in found.values())
            lines.append(self._line(step, subject, rejectable=not settled and self._may_reject(evidence, flags, members)))
        return lines

    def _flagged(self, subject: str, flags: EntityFlags | None) -> tuple[str, ...]:
        """The entity itself, or the group's entities, as far as they are flagged; all of them without flags."""
        members = self._task.groups.get(subject, (subject,))
        return members if flags is None else tuple(key for key in members if key in flags.hinted or key in flags.decided)

    def _may_reject(self, evidence: Evidence, flags: EntityFlags | None, members: Collection[str]) -> bool:
        if flags is None or self._reject == "any":
            return True
        if self._reject == "never":
            return False
        if self._reject == "undecided":
            return not any(key in flags.decided for key in members)
        if evidence.asserts(members):
            return False
        return evidence.names(members) or all(flags.probability[key] < self._sure for key in members)

    def _is_dismissed(self, line: AnswerLine, evidence: Evidence, flags: EntityFlags | None) -> bool:
        return self._grounding and line.rejectable and not evidence.asserts(self._flagged(line.subject, flags))

    def _line(self, step: Step, subject: str, *, rejectable: bool) -> AnswerLine:
        values = self._task.allowed_values(subject, step) if step.kind == "relation" else ()
        return AnswerLine(
            subject,
            self._task.label(subject),
            step.kind,
            tuple((value, self._task.label(value)) for value in values),
            rejectable=rejectable,
            required=frozenset(implied_values(self._task, subject)) & frozenset(values),
        )

    def _ask_step(self, step: Step, evidence: Evidence, lines: Sequence[AnswerLine]) -> dict[str, _Answer]:
        if not lines:
            return {}
        windows = self._windows(step, evidence, lines)
        answers = [self._ask_window(step, evidence, window, lines) for window in windows]
        return {line.subject: _united([answer[line.subject] for answer in answers if line.subject in answer]) for line in lines}

    def _ask_window(self, step: Step, evidence: Evidence, window: Span | None, lines: Sequence[AnswerLine]) -> dict[str, _Answer]:
        """`window` None is the whole report. With grounding a window is asked nothing of a subject asserted only outside of it."""
        text = evidence.text
        shown = text if window is None else text[window.start : window.end]
        part = window or Span(0, max(len(text), 1))
        offered = [self._offered(step, line, evidence, part) for line in lines if not self._is_elsewhere(line, evidence, part)]
        asked = [line for line in offered if line.is_open]
        answers = {line.subject: _forced(line) for line in offered if not line.is_open}
        if not asked:
            return answers
        prompt = self._prompts[step.name].chat(shown, asked)
        completion = self._model.complete(prompt, grammar=answer_grammar(asked), max_tokens=longest_answer_bytes(asked))
        for answered, line in zip(parse_answer(completion, asked), asked, strict=True):
            values = {
                value.key: None if value.key in line.required else span_probability(completion, value.start, value.end)
                for value in answered.values
            }
            optional = frozenset(value for value, _ in line.values) - line.required
            presence = presence_probability(completion, answered)
            answers[line.subject] = _Answer(answered.present, presence, values, line.rejectable, optional)
        return answers

    def _is_elsewhere(self, line: AnswerLine, evidence: Evidence, window: Span) -> bool:
        return self._grounding and evidence.is_elsewhere(self._task.groups.get(line.subject, (line.subject,)), window)

    def _offered(self, step: Step, line: AnswerLine, evidence: Evidence, window: Span) -> AnswerLine:
        if not self._grounding or step.kind == "presence":
            return line
        offered = evidence.offered_values(step, line.subject, window, linking=self._linking)
        values = tuple((value, self._task.label(value)) for value in offered.values)
        return replace(line, values=values, required=offered.required, needs_value=offered.needs_value)

    def _windows(self, step: Step, evidence: Evidence, lines: Sequence[AnswerLine]) -> Sequence[Span | None]:
        model, text = self._model, evidence.text
        if not isinstance(model, TokenCounter):
            return [None]
        prompt = self._prompts[step.name]

        def size(part: str) -> int:
            return model.count_tokens(prompt.chat(part, lines))

        room = model.context_tokens - longest_answer_bytes(lines)
        if size(text) <= room:
            return [None]
        without_report = size("")
        try:
            return report_windows(
                text, evidence.mentions.sentences, lambda part: size(part) - without_report, room - without_report
            )
        except ValueError:
            raise LanguageModelError(
                f"context of {model.context_tokens} tokens is too small: the prompt without a report has {without_report}, "
                f"the longest answer {longest_answer_bytes(lines)}"
            ) from None

    def _reading(self, evidence: Evidence, flags: EntityFlags | None, found: Mapping[str, Mapping[str, _Answer]]) -> Reading:
        findings = []
        relations: dict[tuple[str, str], Relation] = {}
        for key in self._task.keys:
            answers = [step_answers[key] for step_answers in found.values() if key in step_answers]
            present = all(a.present for a in answers) if answers else self._present_unasked(key, flags, found)
            asked = answers or self._of_groups(key, found)
            confidence = _confidence(key, flags, _first_known(a.presence for a in asked), present=present)
            findings.append(EntityFinding(key, present, confidence, evidence.asserted_spans(key) if present else ()))
            if not present:
                continue
            for value, probability in self._values(key, answers).items():
                relations[key, value] = Relation(
                    key, value, confidence if value in implied_values(self._task, key) else probability
                )
        kept = evidence.grounded(relations.values(), drop=self._grounding)
        return Reading(tuple(findings), tuple(kept))

    def _asked(self, evidence: Evidence, flags: EntityFlags | None, found: Mapping[str, Mapping[str, _Answer]]) -> Asked:
        keys = frozenset(key for key in self._task.keys if self._presence_is_asked(key, evidence, flags, found))
        answers = ((subject, answer) for step_answers in found.values() for subject, answer in step_answers.items())
        return Asked(keys, frozenset((subject, value) for subject, answer in answers for value in answer.optional_values))

    def _presence_is_asked(
        self, key: str, evidence: Evidence, flags: EntityFlags | None, found: Mapping[str, Mapping[str, _Answer]]
    ) -> bool:
        """Not where the key could never have been found present, whatever was answered about its group."""
        own = [answers[key] for answers in found.values() if key in answers]
        if not any(answer.may_be_absent for answer in (*own, *self._of_groups(key, found))):
            return False
        return bool(self._flagged(key, flags)) and (not self._grounding or evidence.asserts((key,)))

    def _of_groups(self, key: str, found: Mapping[str, Mapping[str, _Answer]]) -> list[_Answer]:
        """What was found of the groups of a key that was not asked itself: it is as likely as they are at most."""
        groups = [group for group, members in self._task.groups.items() if key in members]
        return [answers[group] for answers in found.values() for group in groups if group in answers]

    def _values(self, key: str, answers: Sequence[_Answer]) -> dict[str, float | None]:
        found = {value: probability for answer in answers for value, probability in answer.values.items()}
        implied = implied_values(self._task, key)
        return {value: found.get(value) for value in self._task.values if value in found or value in implied}

    def _present_unasked(self, key: str, flags: EntityFlags | None, found: Mapping[str, Mapping[str, _Answer]]) -> bool:
        """A key that no step asks by name is stage 1's decision, unless its group was found absent."""
        if flags is None or key not in flags.decided:
            return False
        if any(key in step.subjects for step in self._task.steps):
            return False
        groups = [group for group, members in self._task.groups.items() if key in members]
        return all(answers[group].present for answers in found.values() for group in groups if group in answers)


def _forced(line: AnswerLine) -> _Answer:
    """The only answer that the line allows: present, with the values that are required."""
    return _Answer(present=True, presence=None, values={key: None for key, _ in line.values})


def _united(answers: Sequence[_Answer]) -> _Answer:
    """One answer from those of several windows: present in any is present, values are put together, the surest counts."""
    present = [answer for answer in answers if answer.present] or list(answers)
    values: dict[str, float | None] = {}
    for answer in present:
        for value, probability in answer.values.items():
            values[value] = _surest([values.get(value), probability])
    optional = frozenset(value for answer in answers for value in answer.optional_values)
    may_be_absent = any(answer.may_be_absent for answer in answers)
    return _Answer(present[0].present, _surest([answer.presence for answer in present]), values, may_be_absent, optional)


def _surest(probabilities: Iterable[float | None]) -> float | None:
    return max((p for p in probabilities if p is not None), default=None)


def _confidence(key: str, flags: EntityFlags | None, told: float | None, *, present: bool) -> float | None:
    """Stage 1's probability of presence where its decision stands, else the model's own; None where it gives none."""
    return flags.probability.get(key) if flags is not None and (key in flags.decided) == present else told


def _first_known(probabilities: Iterable[float | None]) -> float | None:
    return next((p for p in probabilities if p is not None), None)

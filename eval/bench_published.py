"""The published way to ask a language model, as a thing to compare with: the two-shot prompt of a task, answered freely.

Shin et al., Sci Rep 2025;15:31550: every report goes through the model with the encoder's keys as a hint; nothing of the prompt
is kept from one report to the next. Published are five beams; llama.cpp has none, so the answer here is greedy, which is faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.contracts import ChatPrompt, Completion, EntityFinding, EntityFlags, LanguageModel, Reading, Relation, Report, Unread
from configs.schema import Step, Task
from stage2_relations.grammar import NOT_PRESENT, AnswerLine
from stage2_relations.ground import implied_values
from stage2_relations.language_model import LanguageModelError
from stage2_relations.prompt import StepPrompt

# Twice the longest answer that the gold of the corpus needs; an untuned model often does not end by itself.
FREE_ANSWER_TOKENS = 96


class FromScratch:
    """A LanguageModel that reads the whole prompt anew each time: nothing of it is given as a prefix that could be kept."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        """See configs.contracts.LanguageModel."""
        whole = ChatPrompt(prompt.system, "", prompt.prefix + prompt.body, prompt.answer_prefix)
        return self._model.complete(whole, grammar=grammar, max_tokens=max_tokens)


class PublishedWay:
    """A RelationMapper that reads free answers line by line and passes over what they say of anything unknown.

    Attributes:
        n_prompts, n_cut, n_answer_tokens: Counted over all reports so far; cut are the answers that `answer_tokens` ended.
    """

    def __init__(
        self, task: Task, model: LanguageModel, *, answer_tokens: int = FREE_ANSWER_TOKENS, ask_unhinted: bool = True
    ) -> None:
        """`ask_unhinted` False leaves out the reports without any hint, which the published way asks too."""
        self._task, self._model = task, model
        self._answer_tokens, self._ask_unhinted = answer_tokens, ask_unhinted
        self._prompts = {step.name: StepPrompt(task, step) for step in task.steps}
        self.n_prompts = self.n_cut = self.n_answer_tokens = 0

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report, in order."""
        return [self._relate_one(report, flag) for report, flag in zip(reports, flags, strict=True)]

    def _relate_one(self, report: Report, flags: EntityFlags | None) -> Reading | Unread:
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        for step in self._task.steps:
            subjects = [name for name in step.subjects if self._is_hinted(name, flags) and self._is_open(step, name, found)]
            if not subjects and (step.only_if_present is not None or not self._ask_unhinted):
                found[step.name] = {}
                continue
            try:
                found[step.name] = self._ask(step, subjects, report.text)
            except LanguageModelError as error:
                return Unread(f"step '{step.name}': {error}")
        return self._reading(flags, found)

    def _members(self, subject: str) -> tuple[str, ...]:
        return self._task.groups.get(subject, (subject,))

    def _is_hinted(self, subject: str, flags: EntityFlags | None) -> bool:
        return flags is None or any(key in flags.hinted for key in self._members(subject))

    def _is_open(self, step: Step, subject: str, found: Mapping[str, Mapping[str, object]]) -> bool:
        if step.only_if_present is None:
            return True
        groups = (group for group, members in self._task.groups.items() if subject in members)
        return any(name in found[step.only_if_present] for name in (subject, *groups))

    def _ask(self, step: Step, subjects: Sequence[str], text: str) -> dict[str, tuple[str, ...]]:
        lines = [AnswerLine(subject, self._task.label(subject), step.kind) for subject in subjects]
        prompt = self._prompts[step.name].chat(text, lines)
        completion = self._model.complete(prompt, grammar=None, max_tokens=self._answer_tokens)
        self.n_prompts += 1
        self.n_cut += not completion.finished
        self.n_answer_tokens += len(completion.token_logprobs or ())
        answer = free_answer(
            completion.text,
            {self._task.label(subject): subject for subject in step.subjects},
            {self._task.label(value): value for value in step.values},
        )
        return {
            subject: tuple(value for value in values if value in _allowed(self._task, subject, step))
            for subject, values in answer.items()
        }

    def _reading(self, flags: EntityFlags | None, found: Mapping[str, Mapping[str, tuple[str, ...]]]) -> Reading:
        findings, relations = [], []
        for key in self._task.keys:
            steps = [step for step in self._task.steps if key in step.subjects]
            asked = [step for step in steps if step.only_if_present is None] or steps
            decided = flags is not None and key in flags.decided
            present = all(key in found[step.name] for step in asked) if asked else decided
            findings.append(EntityFinding(key, present))
            if present:
                values = {*implied_values(self._task, key), *(v for answers in found.values() for v in answers.get(key, ()))}
                relations += [Relation(key, value) for value in self._task.values if value in values]
        return Reading(tuple(findings), tuple(relations))


def free_answer(text: str, subjects: Mapping[str, str], values: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Present subjects with their values, from lines `subject: value, value`; both mappings go from label to key.

    The answer ends at the first empty line or heading. A subject's first line counts. Unknown words are passed over.
    """
    known_subjects = {label.casefold(): key for label, key in subjects.items()}
    known_values = {label.casefold(): key for label, key in values.items()}
    found: dict[str, tuple[str, ...]] = {}
    seen = set()
    for line in text.strip().split("\n"):
        if not line.strip() or line.startswith("#"):
            break
        label, _, said = line.partition(":")
        subject = known_subjects.get(label.strip().casefold())
        if subject is None or subject in seen:
            continue
        seen.add(subject)
        words = [word.strip().casefold() for word in said.split(",")]
        if NOT_PRESENT not in words:
            found[subject] = tuple(dict.fromkeys(known_values[word] for word in words if word in known_values))
    return found


def _allowed(task: Task, subject: str, step: Step) -> tuple[str, ...]:
    return task.allowed_values(subject, step) if step.kind == "relation" else ()

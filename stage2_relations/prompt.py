"""The words of a question. Report text is one line between markers and can neither leave them nor speak for the prompt."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence

from configs.contracts import ChatPrompt
from configs.schema import ConfigError, Example, Step, Task
from stage2_relations.grammar import NOT_PRESENT, NOT_STATED, PRESENT, AnswerLine

__all__ = ["StepPrompt", "n_other_orders", "quoted_report"]

REPORT_START, REPORT_END = "<report>", "</report>"
_SAME_LINE = re.compile(r"\s+")
_HEADING = re.compile(r"#{2,}")
_BAR_BRACKETS = re.compile(r"<(?=[|｜])|(?<=[|｜])>")
_TAG = re.compile(r"<(\s*/?\s*[A-Za-z_][\w ]{0,40})>")
_OWN_MARKER = re.compile(r"<(?=\s*/?\s*report)", re.IGNORECASE)
_SQUARE_TAG = re.compile(r"\[(\s*/?\s*[A-Z][A-Z_ ]{1,40})\]")


def quoted_report(text: str) -> str:
    """A report as one line that cannot act on the prompt: no line breaks, headings, markers or spellings of control tokens.

    Runs of white space and control characters become a space, invisible format characters go, `##…` becomes `#`, `<|` and `|>` get
    a space between, `<name>` and `[NAME]` get round brackets. Measures, arrows and image numbers stay (`< 5 mm`, `-->`, `#3-42`).
    """
    shown = "".join(_visible(character) for character in text)
    shown = _HEADING.sub("#", _SAME_LINE.sub(" ", shown).strip())
    shown = _BAR_BRACKETS.sub(lambda bracket: "< " if bracket[0] == "<" else " >", shown)
    shown = _SQUARE_TAG.sub(r"(\1)", _TAG.sub(r"(\1)", shown))
    return _OWN_MARKER.sub("(", shown)


def _visible(character: str) -> str:
    match unicodedata.category(character):
        case "Cc" | "Zl" | "Zp":
            return " "
        case "Cf":
            return ""
        case "Cs":  # half of a surrogate pair, which no tokeniser can take
            return "\ufffd"
        case _:
            return character


def n_other_orders(step: Step) -> int:
    """How many orders the worked examples of a step have besides that of the file: 0 for one example, 1 for two, 5 for three."""
    return math.factorial(len(step.prompt.examples)) - 1


class StepPrompt:
    """The prompt of one step of a task: a prefix equal for every report, and a body for each."""

    def __init__(self, task: Task, step: Step, *, examples_seed: int | None = None) -> None:
        """Checks the labels and puts the worked examples in order.

        Args:
            task: The task that the step belongs to.
            step: What is asked.
            examples_seed: None keeps the worked examples in the order of the file. 1, 2, … give others, by seed and step name
                alone: never that of the file, and each a new one up to `n_other_orders(step)`, after which they repeat.

        Raises:
            ConfigError: a label could be taken for another part of an answer.
        """
        _check_labels(task, step)
        self._task = task
        self._step = step
        self._examples = step.prompt.examples
        if examples_seed is not None and n_other_orders(step):
            self._examples = tuple(step.prompt.examples[index] for index in _other_order(step, examples_seed))
        self.prefix = self._prefix()

    def chat(self, report_text: str, lines: Sequence[AnswerLine]) -> ChatPrompt:
        """The question for one report, or a window of one; `lines` are what the answer must consist of."""
        return ChatPrompt(system="", prefix=self.prefix, body=self._question(report_text, [line.label for line in lines]))

    def _prefix(self) -> str:
        parts = [self._step.prompt.instruction, self._template()]
        for example in self._examples:
            named = [s for s in self._step.subjects if s in example.hints or s in example.answer]
            question = self._question(example.report, [self._task.label(subject) for subject in named])
            answer = "\n".join(f"{self._task.label(subject)}: {self._answer(example, subject)}" for subject in named)
            parts.append(f"{question}\n{answer}")
        return "\n\n".join(parts) + "\n\n"

    def _template(self) -> str:
        if self._step.kind == "presence":
            return f"Answer with one line for each target: `target: {PRESENT}` or `target: {NOT_PRESENT}`."
        values = ", ".join(self._task.label(value) for value in self._step.values)
        return (
            f"Answer with one line for each target: `target: value, value`, or `target: {NOT_STATED}` (present, but no value is "
            f"given), or `target: {NOT_PRESENT}`. Values: {values}."
        )

    def _question(self, report_text: str, labels: Sequence[str]) -> str:
        return (
            f"### Report:\n{REPORT_START} {quoted_report(report_text)} {REPORT_END}\n"
            f"### {self._step.prompt.heading}: {', '.join(labels)}\n### Output:"
        )

    def _answer(self, example: Example, subject: str) -> str:
        values = example.answer.get(subject)
        if values is None:
            return NOT_PRESENT
        if self._step.kind == "presence":
            return PRESENT
        return ", ".join(self._task.label(value) for value in values) or NOT_STATED


def _other_order(step: Step, seed: int) -> tuple[int, ...]:
    """The seed-th of the orders drawn for the step, none twice. By hash: `random` may shuffle otherwise in another Python."""
    drawn = [tuple(range(len(step.prompt.examples)))]
    n_wanted = 1 + (seed - 1) % n_other_orders(step)
    draw = 0
    while len(drawn) <= n_wanted:
        draw += 1
        order = _drawn_order(step, draw)
        if order not in drawn:
            drawn.append(order)
    return drawn[-1]


def _drawn_order(step: Step, draw: int) -> tuple[int, ...]:
    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{step.name} {draw} {index}".encode()).digest()

    return tuple(sorted(range(len(step.prompt.examples)), key=rank))


def _check_labels(task: Task, step: Step) -> None:
    for name in (*step.subjects, *step.values):
        label = task.label(name)
        fault = next((part for part in ("\n", ", ", ": ", "#", "<", ">", "|") if part in label), None)
        if fault is not None or label != label.strip():
            raise ConfigError(
                f"{task.path}: label '{label}' of '{name}' holds {fault or 'outer white space'!r}, which separates answers"
            )
        if label in (PRESENT, NOT_PRESENT, NOT_STATED):
            raise ConfigError(f"{task.path}: label '{label}' of '{name}' is an answer of its own")

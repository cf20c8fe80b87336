"""Reads an answer back, line by line; whatever is not exactly one of the offered answers is refused, never read as nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.contracts import Completion
from stage2_relations.grammar import NOT_PRESENT, AnswerLine

__all__ = ["AnswerError", "AnsweredLine", "AnsweredValue", "parse_answer"]


class AnswerError(Exception):
    """An answer that is not one of those offered. Tells line and kind of fault, never the answer's words."""


@dataclass(frozen=True, slots=True)
class AnsweredValue:
    """A listed value. `start` and `end` are characters of the answer; the separator before the value is inside."""

    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class AnsweredLine:
    """What one line says. `start` and `end` are the characters of the answer after `label:`."""

    subject: str
    present: bool
    values: tuple[AnsweredValue, ...]
    start: int
    end: int


def parse_answer(completion: Completion, lines: Sequence[AnswerLine]) -> list[AnsweredLine]:
    """One result for each of `lines`, in order.

    Values may come in any order (a model without a grammar), but none twice and only offered ones.

    Raises:
        AnswerError: unfinished, too few or too many lines, another subject, or a value or word that was not offered.
    """
    if not completion.finished:
        raise AnswerError("answer stops at the token limit")
    found = completion.text.rstrip().split("\n")
    if len(found) != len(lines):
        raise AnswerError(f"answer has {len(found)} lines; {len(lines)} are expected")
    answered = []
    start = 0
    for number, (text, line) in enumerate(zip(found, lines, strict=True), start=1):
        answered.append(_line(text, line, number, start))
        start += len(text) + 1
    return answered


def _line(text: str, line: AnswerLine, number: int, start: int) -> AnsweredLine:
    label = f"{line.label}: "
    if not text.startswith(label):
        raise AnswerError(f"line {number} of the answer does not begin with '{line.label}:'")
    begin, end = start + len(label) - 1, start + len(text)
    answer = text[len(label) :]
    if answer in line.words:
        return AnsweredLine(line.subject, answer != NOT_PRESENT, (), begin, end)
    offered = {shown: key for key, shown in line.values}
    values: list[AnsweredValue] = []
    position = begin
    for shown in answer.split(", "):
        if shown not in offered:
            raise AnswerError(f"line {number} of the answer ('{line.label}') holds something that was not offered")
        length = (2 if values else 1) + len(shown)
        values.append(AnsweredValue(offered.pop(shown), position, position + length))
        position += length
    if not line.required <= {value.key for value in values}:
        raise AnswerError(f"line {number} of the answer ('{line.label}') leaves out a value that the report states")
    return AnsweredLine(line.subject, True, tuple(values), begin, end)

"""What an answer may look like: one line a subject, each with the values it may have, and the GBNF that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import StepKind

__all__ = ["NOT_PRESENT", "NOT_STATED", "PRESENT", "AnswerLine", "answer_grammar", "longest_answer_bytes"]

PRESENT = "present"
NOT_PRESENT = "not present"
NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """One line `label: …` of an answer.

    Attributes:
        subject: Entity key or group name.
        label: How the prompt calls it.
        kind: A presence line is `present` or `not present`; a relation line lists values, or is `not stated` or `not present`.
        values: (key, label) of the values that may be listed, in the order in which they must be listed.
        rejectable: Whether `not present` is offered.
        required: Keys among `values` that must be listed if the subject is present: implied values, values of its own sentence.
        needs_value: Whether `not stated` is not offered; so it is too where a value is required.
    """

    subject: str
    label: str
    kind: StepKind
    values: tuple[tuple[str, str], ...] = ()
    rejectable: bool = True
    required: frozenset[str] = frozenset()
    needs_value: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The offered answers that are no list of values."""
        if self.kind == "presence":
            stated: tuple[str, ...] = (PRESENT,)
        else:
            stated = () if self.required or (self.needs_value and self.values) else (NOT_STATED,)
        return (*stated, NOT_PRESENT) if self.rejectable else stated

    @property
    def is_open(self) -> bool:
        """Whether more than one answer is possible, so that asking can tell something."""
        optional = len(self.values) - len(self.required)
        return len(self.words) + optional > (0 if self.required else 1)


def answer_grammar(lines: Sequence[AnswerLine]) -> str:
    """GBNF for exactly these lines, in this order. Values come in the line's order and at most once, so every answer is finite.

    Literals begin at word boundaries (` RUL`, `, RUL`), so that a tokeniser cuts each as it would cut the whole answer.
    """
    rules: dict[str, str] = {}
    names: dict[tuple[tuple[str, ...], tuple[tuple[str, bool], ...]], str] = {}
    root: list[str] = []
    for position, line in enumerate(lines):
        root.append(_literal(("\n" if position else "") + line.label + ":"))
        key = (line.words, tuple((label, value in line.required) for value, label in line.values))
        if key not in names:
            names[key] = f"answer-{len(names)}"
            _add_rules(rules, names[key], *key)
        root.append(names[key])
    return "\n".join([f"root ::= {' '.join(root)}", *(f"{name} ::= {body}" for name, body in rules.items())]) + "\n"


def _add_rules(rules: dict[str, str], name: str, words: tuple[str, ...], values: tuple[tuple[str, bool], ...]) -> None:
    """`values`: label, and whether it must be listed. Rule `name-after-i` is what may follow once values before i are done with."""

    def continued(start: int, separator: str) -> list[str]:
        options = []
        for index in range(start, len(values)):
            label, required = values[index]
            options.append(_literal(separator + label) + (f" {name}-after-{index + 1}" if index + 1 < len(values) else ""))
            if required:
                return options
        return options

    rules[name] = " | ".join([*continued(0, " "), *(_literal(f" {word}") for word in words)])
    for start in range(1, len(values)):
        may_end = not any(required for _, required in values[start:])
        rules[f"{name}-after-{start}"] = " | ".join([*(['""'] if may_end else []), *continued(start, ", ")])


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def longest_answer_bytes(lines: Sequence[AnswerLine]) -> int:
    """UTF-8 bytes of the longest answer that the grammar allows: no tokeniser needs more tokens for it."""
    total = 0
    for line in lines:
        listed = ", ".join(label for _, label in line.values)
        answers = [*line.words, *([listed] if listed else [])]
        total += len(f"{line.label}: \n".encode()) + max((len(answer.encode()) for answer in answers), default=0)
    return total

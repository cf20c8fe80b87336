"""Keywords of a task file as regular expressions: gaps, typing slips, word edges."""

from __future__ import annotations

import re

_TYPO_WORD = re.compile(r"~([A-Za-z]{5,})~")
# a space of its own, or an escape or character class, whose spaces mean themselves
_SPACE_OR_WHOLE = re.compile(r" |\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
_GAP = r"(?:[\s\-\u2010-\u2013]+)"


def compile_keyword(word: str, *, whole_word: bool) -> re.Pattern[str]:
    """A keyword as a pattern: case-insensitive, a space matches any run of white space or hyphens (` ?`: or nothing).

    `~consolidation~` stands for the word and for every spelling one slip away from it (a letter left out, added, replaced,
    or two neighbours swapped; the first letter stays): dictated and typed reports hold many. It needs five letters or more.

    A group named `at` marks the part that counts as the mention, where the rest is context:
    `pleural effusion or (?P<at>thickening)`.

    whole_word: Latin letters must not touch the match; a Korean particle or a digit may ("RUL의", "GGO2").

    Raises:
        re.error: `word` is no regular expression.
    """
    body = _TYPO_WORD.sub(lambda match: _one_slip(match[1]), word)
    body = _SPACE_OR_WHOLE.sub(lambda match: _GAP if match[0] == " " else match[0], body)
    if whole_word:
        body = rf"(?<![A-Za-z])(?:{body})(?![A-Za-z])"
    return re.compile(body, re.IGNORECASE)


def _one_slip(word: str) -> str:
    """A pattern of `word` and its neighbours at one edit behind the first letter."""
    tail = ""
    for i in range(len(word) - 1, 0, -1):
        here, rest = word[i], word[i + 1 :]
        slips = [f"[a-z]?{rest}", f"[a-z]{here}{rest}"]
        if rest:
            slips.append(f"{rest[0]}{here}{rest[1:]}")
        tail = f"(?:{here}{tail}|{'|'.join(slips)})"
    return word[0] + tail

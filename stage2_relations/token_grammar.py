"""Grammars of literals, followed token by token: every literal keeps the tokens that the model's tokeniser gives it.

A character grammar lets a small model spell ` not stated` as ` ,n,o,t, ,s,t,ated`: 12 steps instead of 2, in pieces that it never
saw together. Here forced text costs no step at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

Symbol = int | str  # a token, or the name of a rule
Stack = tuple[Symbol, ...]

_RULE = re.compile(r"([a-z][a-z0-9-]*) ::= (.*)")
_PART = re.compile(r'\s*(?:(?P<bar>\|)|(?P<name>[a-z][a-z0-9-]*)|"(?P<literal>(?:[^"\\]|\\.)*)")')
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class TokenGrammar:
    """Where an answer stands in a grammar that is literals, rule names and alternatives, without recursion."""

    def __init__(self, rules: Mapping[str, tuple[Stack, ...]]) -> None:
        """Use `parse`."""
        self._rules = rules
        self._stacks = self._expanded({("root",)})

    @classmethod
    def parse(cls, gbnf: str, tokenise: Callable[[str], tuple[int, ...]]) -> TokenGrammar | None:
        """The grammar, or None where `gbnf` uses more than literals, names and alternatives, or is recursive."""
        alternatives: dict[str, list[list[Symbol]]] = {}
        for line in filter(None, gbnf.split("\n")):
            rule = _RULE.fullmatch(line)
            parts = None if rule is None else _alternatives(rule[2], tokenise)
            if rule is None or parts is None:
                return None
            alternatives[rule[1]] = parts
        rules = {name: tuple(tuple(symbols) for symbols in parts) for name, parts in alternatives.items()}
        return cls(rules) if _is_finite(rules) else None

    def next_tokens(self) -> list[int]:
        """The tokens that may come next, ascending."""
        return sorted({stack[0] for stack in self._stacks if stack and isinstance(stack[0], int)})

    @property
    def may_end(self) -> bool:
        """Whether the answer is whole as it stands."""
        return () in self._stacks

    def accept(self, token: int) -> None:
        """Moves on by a token that `next_tokens` offered."""
        self._stacks = self._expanded({stack[1:] for stack in self._stacks if stack and stack[0] == token})

    def after(self, tokens: Iterable[int]) -> TokenGrammar | None:
        """The place after these tokens; None where they are not allowed one after the other. This one stays where it is."""
        place = TokenGrammar.__new__(TokenGrammar)
        place._rules, place._stacks = self._rules, self._stacks
        for token in tokens:
            place.accept(token)
            if not place._stacks:
                return None
        return place

    def _expanded(self, stacks: set[Stack]) -> set[Stack]:
        done: set[Stack] = set()
        open_stacks = list(stacks)
        while open_stacks:
            stack = open_stacks.pop()
            if stack and isinstance(stack[0], str):
                open_stacks.extend((*symbols, *stack[1:]) for symbols in self._rules[stack[0]])
            else:
                done.add(stack)
        return done


def _alternatives(body: str, tokenise: Callable[[str], tuple[int, ...]]) -> list[list[Symbol]] | None:
    found: list[list[Symbol]] = [[]]
    position = 0
    while position < len(body.rstrip()):
        part = _PART.match(body, position)
        if part is None:
            return None
        position = part.end()
        if part["bar"]:
            found.append([])
        elif part["name"]:
            found[-1].append(part["name"])
        else:
            text = re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], ""), part["literal"])
            found[-1].extend(tokenise(text))
    return found


def _is_finite(rules: Mapping[str, tuple[Stack, ...]]) -> bool:
    """Whether every rule that is used exists and none leads back to itself."""
    finished: set[str] = set()

    def visit(name: str, above: frozenset[str]) -> bool:
        if name in finished:
            return True
        if name in above or name not in rules:
            return False
        inside = [symbol for symbols in rules[name] for symbol in symbols if isinstance(symbol, str)]
        if all(visit(symbol, above | {name}) for symbol in inside):
            finished.add(name)
            return True
        return False

    return visit("root", frozenset())

"""Token probabilities among what a grammar allows, from a server's probabilities among all tokens.

A server gives the likeliest few tokens of each place as they were before the grammar was applied. There a forced token can have one
in a million, which says nothing of the answer. What counts is how the allowed ways to go on share their part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stage2_relations.token_grammar import TokenGrammar

__all__ = ["ServedToken", "offered_logprobs"]

LARGEST_UNSEEN_SHARE = 0.1  # of the allowed part that ways not among the given tokens may have at most


@dataclass(frozen=True, slots=True)
class ServedToken:
    """One generated token: its text, and natural-log probabilities of the likeliest tokens of its place, itself among them."""

    text: str
    top: Mapping[str, float]


def offered_logprobs(tokens: Sequence[ServedToken], grammar: str) -> tuple[float, ...] | None:
    """One natural-log probability a token, among the ways that the grammar allows; 0.0 where there was no choice.

    None where it cannot be told: a grammar that is more than literals, text outside of it, or a choice of which too many allowed
    ways are not among the given tokens.
    """
    place = TokenGrammar.parse(grammar, lambda literal: tuple(map(ord, literal)))
    if place is None:
        return None
    rest = "".join(token.text for token in tokens)
    found = []
    for token in tokens:
        after = place.after(map(ord, token.text))
        logprob = None if after is None else _logprob(place, token, rest)
        if after is None or logprob is None:
            return None
        found.append(logprob)
        place, rest = after, rest[len(token.text) :]
    return tuple(found)


def _logprob(place: TokenGrammar, token: ServedToken, rest: str) -> float | None:
    ways = _other_ways(place, token.text)
    if not ways:
        return 0.0
    same = other = 0.0
    seen: set[str] = set()
    for text, logprob in token.top.items():
        if not _is_end(text) and rest.startswith(text):
            same += math.exp(logprob)
            continue
        reached = {way for way in ways if (_is_end(text) if way == "" else text.startswith(way))}
        if reached and (_is_end(text) or place.after(map(ord, text)) is not None):
            other += math.exp(logprob)
            seen |= reached
    allowed = same + other
    unseen = len(ways - seen) * math.exp(min(token.top.values(), default=0.0))  # what is not given is no likelier than what is
    if same <= 0.0 or unseen > LARGEST_UNSEEN_SHARE * allowed:
        return None
    return min(0.0, math.log(same / allowed))


def _other_ways(place: TokenGrammar, text: str) -> frozenset[str]:
    """Where the grammar allows to leave `text`: the shared characters and the first other one; "" for an end before `text`."""
    ways = {""} if place.may_end else set()
    for position, character in enumerate(text):
        here = place.after(map(ord, text[:position]))
        if here is not None:
            ways |= {text[:position] + chr(code) for code in here.next_tokens() if chr(code) != character}
    return frozenset(ways)


def _is_end(text: str) -> bool:
    """Servers write a token that ends an answer as nothing or by its name, such as <|eot_id|> or </s>."""
    return text == "" or (text.startswith("<") and text.endswith(">"))

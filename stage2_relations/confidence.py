"""Probabilities of an answer's parts, from the log-probabilities of its tokens."""

from __future__ import annotations

import math

from configs.contracts import Completion
from stage2_relations.language_model import AlignedCompletion
from stage2_relations.parse import AnsweredLine

__all__ = ["presence_probability", "span_probability"]


def span_probability(completion: Completion, start: int, end: int) -> float | None:
    """Probability of the tokens that reach into characters `[start, end)` of the answer, given those before; None: not known."""
    if not isinstance(completion, AlignedCompletion) or completion.token_logprobs is None:
        return None
    begins = (0, *completion.token_ends_chars[:-1])
    inside = [
        logprob
        for logprob, begin, stop in zip(completion.token_logprobs, begins, completion.token_ends_chars, strict=True)
        if begin < end and stop > start
    ]
    return math.exp(math.fsum(inside))


def presence_probability(completion: Completion, line: AnsweredLine) -> float | None:
    """How likely the answer holds the subject to be present; None if the model gives no probabilities.

    `not present`: one minus the probability of these words. Otherwise the probability of the first listed value, or of the
    words that stand instead: a lower bound, since the other values speak for presence too.
    """
    first = line.values[0] if line.values else line
    probability = span_probability(completion, first.start, first.end)
    if probability is None or line.present:
        return probability
    return 1.0 - probability

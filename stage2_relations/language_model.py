"""What stage 2 needs of a model beyond `configs.contracts.LanguageModel`: its error, its token count, where its tokens end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from configs.contracts import ChatPrompt, Completion


class LanguageModelError(Exception):
    """A model that gave no answer: one report is unread, the run goes on. The message never holds report text."""


@dataclass(frozen=True, slots=True)
class AlignedCompletion(Completion):
    """A completion whose log-probabilities can be led back to the text.

    `token_ends_chars[i]` is how many characters of `text` are complete once token i stands; equally long as `token_logprobs`.
    Under a grammar the probabilities are taken among the tokens that the grammar allows, so a forced token has 0.0.
    """

    token_ends_chars: tuple[int, ...] = ()


@runtime_checkable
class TokenCounter(Protocol):
    """A model that knows its context: lets the mapper read a long report in windows instead of failing on it."""

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and answer may have together."""
        ...

    def count_tokens(self, prompt: ChatPrompt) -> int:
        """Tokens of the whole prompt, chat template and answer prefix included."""
        ...

"""Which tokens a grammar lets an answer go on with: by literals where it can be, else by llama.cpp's own grammar sampler."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any, Protocol

import llama_cpp.llama_cpp as library
import numpy as np
import numpy.typing as npt

from stage2_relations.language_model import LanguageModelError
from stage2_relations.llama_log import last_llama_errors
from stage2_relations.token_grammar import TokenGrammar

Tokens = npt.NDArray[np.intc]


class Follow(Protocol):
    """An answer's place in its grammar."""

    def allowed(self) -> Tokens | None:
        """Ids that may come next, ascending, with the end tokens where the answer may end; None means every token."""
        ...

    def accept(self, token: int) -> None:
        """Moves on by an allowed token that is no end token."""
        ...

    def close(self) -> None:
        """Frees what llama.cpp holds."""
        ...


class FreeText:
    """No grammar."""

    def allowed(self) -> None:
        return None

    def accept(self, token: int) -> None:
        return None

    def close(self) -> None:
        return None


class FollowLiterals:
    """A grammar of literals: one set look-up a token instead of a test of the whole vocabulary (3 ms for 49,152 tokens)."""

    def __init__(self, grammar: TokenGrammar, end_tokens: npt.NDArray[np.bool_]) -> None:
        self._grammar = grammar
        self._ends = np.flatnonzero(end_tokens)

    def allowed(self) -> Tokens:
        tokens = self._grammar.next_tokens()
        return np.unique(np.array([*tokens, *(self._ends if self._grammar.may_end else ())], dtype=np.intc))

    def accept(self, token: int) -> None:
        self._grammar.accept(token)

    def close(self) -> None:
        return None


class FollowCharacters:
    """Any GBNF grammar, by characters."""

    def __init__(self, vocab: Any, grammar: str, end_tokens: npt.NDArray[np.bool_]) -> None:
        """Raises LanguageModelError where llama.cpp cannot parse the grammar."""
        self._sampler = library.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
        if not self._sampler:
            digest = hashlib.sha256(grammar.encode("utf-8")).hexdigest()[:12]
            raise LanguageModelError(f"llama.cpp refuses grammar {digest} ({len(grammar)} characters): {last_llama_errors()}")
        layout = np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)], align=True)
        self._data = np.zeros(len(end_tokens), dtype=layout)
        self._ids = np.arange(len(end_tokens), dtype=np.intc)

    def allowed(self) -> Tokens:
        self._data["id"] = self._ids
        self._data["logit"] = 0.0
        array = library.llama_token_data_array(
            data=self._data.ctypes.data_as(library.llama_token_data_p), size=len(self._ids), selected=-1, sorted=False
        )
        library.llama_sampler_apply(self._sampler, ctypes.byref(array))
        left = self._data[: array.size]
        return np.sort(left["id"][np.isfinite(left["logit"])])

    def accept(self, token: int) -> None:
        library.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        library.llama_sampler_free(self._sampler)

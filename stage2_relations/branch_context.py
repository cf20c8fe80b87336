"""Scores at the ends of several branches of one text: the trunk is read once, every branch shares its cells and sees no other."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import llama_cpp.llama_cpp as library
import numpy as np

from stage2_relations.language_model import LanguageModelError
from stage2_relations.llama_log import last_llama_errors

__all__ = ["MAX_BRANCHES", "BranchContext", "branch_parameters"]

MAX_BRANCHES = 63  # of one trunk; with the trunk's own sequence the cache keeps 64 apart


class _Row(NamedTuple):
    """One token of a batch: where it stands, in which sequences, and whether the scores behind it are wanted."""

    token: int
    position: int
    sequences: tuple[int, ...]
    scored: bool


class BranchContext:
    """A llama.cpp context with one sequence for the trunk and one for each branch, over one common cache.

    Every call begins with an empty cache and reads trunk and branches in batches that follow from their lengths alone, so that the
    scores of a question are repeated bit for bit. Other batches may move them: by up to 0.4 for the default model, which rounds
    activations to 8 bits.
    """

    def __init__(self, handle: Any, n_vocab: int) -> None:
        """Takes a context made with `branch_parameters`; who made it frees it."""
        self._handle = handle
        self._memory = library.llama_get_memory(handle)
        self._n_vocab = n_vocab
        self._batch_tokens = int(library.llama_n_batch(handle))

    @property
    def context_tokens(self) -> int:
        """Tokens that the trunk and all its branches may have together."""
        return int(library.llama_n_ctx(self._handle))

    def scores(self, trunk: Sequence[int], branches: Sequence[Sequence[int]], letters: Sequence[int]) -> list[tuple[float, ...]]:
        """Unnormalised scores of the tokens `letters` after trunk + branch, one tuple a branch.

        Raises:
            LanguageModelError: no trunk, an empty branch, too many branches or tokens, or llama.cpp fails.
        """
        self._check(trunk, branches)
        library.llama_memory_clear(self._memory, True)
        ends = []
        rows: list[_Row] = []
        for sequence, branch in enumerate(branches, start=1):
            last = len(branch) - 1
            rows += [_Row(token, len(trunk) + place, (sequence,), place == last) for place, token in enumerate(branch)]
            ends.append(len(rows) - 1)
        if len(trunk) + len(rows) <= self._batch_tokens:
            # The trunk as a batch of its own cost 3 to 5 % more: few rows are slow rows.
            every = tuple(range(1, len(branches) + 1))
            rows = [*(_Row(token, place, every, False) for place, token in enumerate(trunk)), *rows]
            ends = [len(trunk) + end for end in ends]
        else:
            self._read([_Row(token, place, (0,), False) for place, token in enumerate(trunk)], [], letters)
            for sequence in range(1, len(branches) + 1):
                library.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        found = self._read(rows, ends, letters)
        return [found[end] for end in ends]

    def _read(self, rows: Sequence[_Row], ends: Sequence[int], letters: Sequence[int]) -> dict[int, tuple[float, ...]]:
        found: dict[int, tuple[float, ...]] = {}
        for start in range(0, len(rows), self._batch_tokens):
            with _batch(rows[start : start + self._batch_tokens]) as batch:
                self._decode(batch)
                for end in ends:
                    if start <= end < start + self._batch_tokens:
                        found[end] = self._scores_at(end - start, letters)
        return found

    def _check(self, trunk: Sequence[int], branches: Sequence[Sequence[int]]) -> None:
        if not trunk or not all(branches):
            raise LanguageModelError("a trunk or branch without tokens; each is expected to have one at least")
        if len(branches) > MAX_BRANCHES:
            raise LanguageModelError(f"{len(branches)} branches of one text; at most {MAX_BRANCHES} can be read at once")
        n_branch_tokens = sum(map(len, branches))
        if len(trunk) + n_branch_tokens > self.context_tokens:
            raise LanguageModelError(
                f"text of {len(trunk)} tokens and branches of {n_branch_tokens} exceed the context of {self.context_tokens}"
            )

    def _decode(self, batch: Any) -> None:
        code = library.llama_decode(self._handle, batch)
        if code != 0:
            raise LanguageModelError(f"llama.cpp cannot decode {batch.n_tokens} tokens (code {code}): {last_llama_errors()}")

    def _scores_at(self, row: int, letters: Sequence[int]) -> tuple[float, ...]:
        pointer = library.llama_get_logits_ith(self._handle, row)
        if not pointer:
            raise LanguageModelError("llama.cpp gives no scores at the end of a branch")
        found = np.ctypeslib.as_array(pointer, shape=(self._n_vocab,))[list(letters)]
        if not np.isfinite(found).all():
            raise LanguageModelError("the model's scores are not finite")
        return tuple(float(score) for score in found)


def branch_parameters(parameters: Any, *, batch_tokens: int) -> Any:
    """Changes a context's parameters to those that branches need, and returns them."""
    parameters.n_seq_max = MAX_BRANCHES + 1
    parameters.n_batch = parameters.n_ubatch = batch_tokens
    parameters.n_outputs_max = MAX_BRANCHES + 1  # room for scores is kept for the ends of branches alone, not for every token
    parameters.kv_unified = True  # sequences share the trunk's cells only in one common cache
    return parameters


@contextmanager
def _batch(rows: Sequence[_Row]) -> Iterator[Any]:
    """A llama.cpp batch of these rows."""
    n_tokens = len(rows)
    tokens = (library.llama_token * n_tokens)(*(row.token for row in rows))
    positions = (library.llama_pos * n_tokens)(*(row.position for row in rows))
    wanted = (ctypes.c_int8 * n_tokens)(*(row.scored for row in rows))
    each = (ctypes.c_int32 * n_tokens)(*(len(row.sequences) for row in rows))
    pointer = ctypes.POINTER(library.llama_seq_id)
    sequences = {ids: (library.llama_seq_id * len(ids))(*ids) for ids in {row.sequences for row in rows}}
    of_row = (pointer * n_tokens)(*(ctypes.cast(sequences[row.sequences], pointer) for row in rows))
    yield library.llama_batch(
        n_tokens=n_tokens, token=tokens, embd=None, pos=positions, n_seq_id=each, seq_id=of_row, logits=wanted
    )

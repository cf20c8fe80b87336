"""A GGUF model in this process: greedy answers under a grammar, token probabilities for free, the constant prefix kept.

An answer depends on the prompt alone, not on what was asked before: a prefix is always read in the same batches from an
empty cache and copied back byte for byte, and the body is never shared between prompts.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as library
import numpy as np
import numpy.typing as npt

from configs.contracts import ChatPrompt
from stage2_relations.branch_context import BranchContext, branch_parameters
from stage2_relations.chat_template import ChatTemplate
from stage2_relations.follow import Follow, FollowCharacters, FollowLiterals, FreeText
from stage2_relations.language_model import AlignedCompletion, LanguageModelError
from stage2_relations.llama_log import last_llama_errors, silence_llama
from stage2_relations.model_file import ModelFileError, check_gguf, file_sha256
from stage2_relations.token_grammar import TokenGrammar

__all__ = ["LlamaCppModel"]

DEFAULT_CONTEXT_TOKENS = 4096
BATCH_TOKENS = 512
KEPT_PREFIXES = 8  # a task has one prefix a step; 18 MB each for 800 tokens of the default model
PIECE_BYTES = 512


class LlamaCppModel:
    """A LanguageModel, TokenCounter and BranchModel over llama.cpp. Not for use by two threads at once.

    Attributes:
        token_counts: Tokens so far. `stage2_decoded`: of prompts, read by the model. `stage2_kept`: of prompts, from the cache.
            `stage2_generated`: of answers, with those that the grammar leaves no choice about.
    """

    def __init__(
        self, path: Path, model: Any, context: Any, template: ChatTemplate, *, adapter: Path | None = None, lora: Any = None
    ) -> None:
        """Use `load`. Takes over the llama.cpp handles; `lora` is the handle of `adapter`, set on `context` already."""
        self.path, self.adapter = path, adapter
        self._model, self._context, self._template, self._lora = model, context, template, lora
        self._vocab = library.llama_model_get_vocab(model)
        self._memory = library.llama_get_memory(context)
        self._n_vocab = library.llama_vocab_n_tokens(self._vocab)
        self._end_tokens = np.array([library.llama_vocab_is_eog(self._vocab, i) for i in range(self._n_vocab)])
        self._prefix_states: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self._prefix_tokens: OrderedDict[tuple[str, str], tuple[int, ...]] = OrderedDict()
        self._loaded_prefix: tuple[int, ...] | None = None
        self.token_counts = {"stage2_decoded": 0, "stage2_kept": 0, "stage2_generated": 0}
        self._contexts = [context]
        self._close = weakref.finalize(self, _free, model, self._contexts)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        gpu_layers: int = 0,
        threads: int = 1,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
        adapter: Path | None = None,
    ) -> LlamaCppModel:
        """The model in the GGUF file at `path`.

        Args:
            path: An instruct model: its metadata must hold a chat template.
            gpu_layers: Layers to offload; -1 means all.
            threads: More threads than free cores are slower than one.
            context_tokens: Prompt and answer together; the model's own limit is used where it is smaller.
            adapter: A GGUF file of LoRA matrices, made for this very model; it takes part in every answer and score.

        Raises:
            ModelFileError: not a GGUF file, cut, or refused by llama.cpp.
        """
        check_gguf(path)
        if adapter is not None:
            check_gguf(adapter)
        silence_llama()
        library.llama_backend_init()
        model_parameters = library.llama_model_default_params()
        model_parameters.n_gpu_layers = gpu_layers
        model = library.llama_model_load_from_file(os.fsencode(path), model_parameters)
        if model is None:
            raise ModelFileError(f"{path}: llama.cpp cannot load it: {last_llama_errors()}")
        raw_template = library.llama_model_chat_template(model, None)
        if raw_template is None:
            library.llama_model_free(model)
            raise ModelFileError(f"{path}: holds no chat template; an instruct model is expected")
        own_limit = library.llama_model_n_ctx_train(model)
        try:
            lora = None if adapter is None else _lora(model, adapter)
            parameters = _parameters(min(context_tokens, own_limit) if own_limit > 0 else context_tokens, threads)
            context = _context(path, model, parameters, lora)
        except ModelFileError:
            library.llama_model_free(model)
            raise
        template = ChatTemplate(raw_template.decode("utf-8"), _special_text(model))
        return cls(path, model, context, template, adapter=adapter, lora=lora)

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the model file, read on first use."""
        return file_sha256(self.path)

    @cached_property
    def adapter_hash(self) -> str | None:
        """sha256 of the adapter's file, read on first use; None without one."""
        return None if self.adapter is None else file_sha256(self.adapter)

    @property
    def context_tokens(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(library.llama_n_ctx(self._context))

    def close(self) -> None:
        """Frees the model's memory; the object must not be used afterwards."""
        self._close()

    def count_tokens(self, prompt: ChatPrompt) -> int:
        """Tokens of the whole prompt, chat template and answer prefix included."""
        return len(self._prefix(prompt)) + len(self._rest(prompt))

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> AlignedCompletion:
        """Greedy completion; see configs.contracts.LanguageModel.

        Raises:
            LanguageModelError: the prompt does not fit, the grammar is refused, or llama.cpp fails.
        """
        prefix, rest = self._prefix(prompt), self._rest(prompt)
        if len(prefix) + len(rest) + max_tokens > self.context_tokens:
            raise LanguageModelError(
                f"prompt of {len(prefix) + len(rest)} tokens and answer of {max_tokens} exceed the context of {self.context_tokens}"
            )
        follow = self._follow(grammar)
        try:
            self._restore(prefix)
            return self._answer(list(rest), follow, max_tokens)
        except LanguageModelError:
            self._loaded_prefix = None
            raise
        finally:
            follow.close()

    def branch_logits(self, trunk: str, branches: Sequence[str], letters: Sequence[str]) -> list[tuple[float, ...]]:
        """Scores of each letter as the next token after trunk + branch; see branches.BranchModel.

        Trunk and branches are plain text, outside the chat template, and are tokenised apart.

        Raises:
            LanguageModelError: a letter is no single token, the text does not fit, there are too many branches, or llama.cpp fails.
        """
        columns = [self._letter_token(letter) for letter in letters]
        if not branches:
            return []
        trunk_tokens, branch_tokens = self.trunk_tokens(trunk), [self.branch_tokens(text) for text in branches]
        scores = self._branch_context.scores(trunk_tokens, branch_tokens, columns)
        self.token_counts["stage2_decoded"] += len(trunk_tokens) + sum(map(len, branch_tokens))
        return scores

    def count_branch_tokens(self, trunk: str, branches: Sequence[str]) -> int:
        """Tokens of the trunk and all branches: what must fit into `context_tokens`."""
        return len(self.trunk_tokens(trunk)) + sum(len(self.branch_tokens(text)) for text in branches)

    @cached_property
    def _branch_context(self) -> BranchContext:
        """Made on first use: it has a cache of its own, as large as the other's."""
        parameters = branch_parameters(_parameters(self.context_tokens, self._threads), batch_tokens=BATCH_TOKENS)
        context = _context(self.path, self._model, parameters, self._lora)
        self._contexts.append(context)
        return BranchContext(context, self._n_vocab)

    @property
    def _threads(self) -> int:
        return int(library.llama_n_threads(self._context))

    def trunk_tokens(self, trunk: str) -> tuple[int, ...]:
        """Tokens of a trunk as `branch_logits` reads it."""
        tokens = self._text_tokens(trunk)
        return (library.llama_vocab_bos(self._vocab), *tokens) if library.llama_vocab_get_add_bos(self._vocab) else tokens

    def branch_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of a branch or a letter as `branch_logits` reads it."""
        return self._plain(self._literal_tokens(text))

    def _letter_token(self, letter: str) -> int:
        tokens = self.branch_tokens(letter)
        if len(tokens) != 1:
            raise LanguageModelError(f"letter {letter!r} has {len(tokens)} tokens in {self.path.name}; one is expected")
        return tokens[0]

    def _follow(self, grammar: str | None) -> Follow:
        if grammar is None:
            return FreeText()
        literals = TokenGrammar.parse(grammar, self._literal_tokens)
        if literals is not None:
            return FollowLiterals(literals, self._end_tokens)
        return FollowCharacters(self._vocab, grammar, self._end_tokens)

    def _answer(self, pending: list[int], follow: Follow, max_tokens: int) -> AlignedCompletion:
        """`pending` are tokens not decoded yet: forced ones wait for the next choice and are read in one batch with it."""
        pieces = bytearray()
        logprobs: list[float] = []
        ends: list[int] = []
        finished = False
        n_unread = len(pending)
        for step in range(max_tokens + 1):
            allowed = follow.allowed()
            if allowed is not None and self._end_tokens[allowed].all():
                finished = True
                break
            if allowed is not None and allowed.size == 1:
                token, logprob = int(allowed[0]), 0.0
            else:
                self._decode(pending)
                pending.clear()
                self.token_counts["stage2_decoded"] += n_unread
                n_unread = 0
                token, logprob = _greedy(self._logits(), allowed)
            if self._end_tokens[token]:
                finished = True
                break
            if step == max_tokens:
                break
            pieces += self._piece(token)
            logprobs.append(logprob)
            ends.append(len(pieces.decode("utf-8", errors="ignore")))
            follow.accept(token)
            pending.append(token)
        self.token_counts["stage2_generated"] += len(logprobs)
        return AlignedCompletion(pieces.decode("utf-8", errors="replace"), tuple(logprobs), finished, tuple(ends))

    def _logits(self) -> npt.NDArray[np.single]:
        logits: npt.NDArray[np.single] = np.ctypeslib.as_array(
            library.llama_get_logits_ith(self._context, -1), shape=(self._n_vocab,)
        )
        return logits

    def _literal_tokens(self, literal: str) -> tuple[int, ...]:
        """Tokens of a literal as they stand in running text: some tokenisers put a space before whatever comes first."""
        before = "\n" if literal[:1].isalnum() else "x"
        lead, both = self._tokens(before, special=False), self._tokens(before + literal, special=False)
        return both[len(lead) :] if both[: len(lead)] == lead else self._tokens(literal, special=False)

    def _prefix(self, prompt: ChatPrompt) -> tuple[int, ...]:
        key = (prompt.system, prompt.prefix)
        tokens = self._prefix_tokens.get(key)
        if tokens is None:
            head = self._template.before_user(prompt.system)
            tokens = (*self._begin(head), *self._text_tokens(self._template.user_text(prompt.system, prompt.prefix)))
            _remember(self._prefix_tokens, key, tokens)
        return tokens

    def _begin(self, head: str) -> tuple[int, ...]:
        tokens = self._tokens(head, special=True)
        first = library.llama_vocab_bos(self._vocab)
        if library.llama_vocab_get_add_bos(self._vocab) and tokens[:1] != (first,):
            return (first, *tokens)
        return tokens

    def _rest(self, prompt: ChatPrompt) -> tuple[int, ...]:
        return (
            *self._text_tokens(prompt.body),
            *self._tokens(self._template.after_user, special=True),
            *self._text_tokens(prompt.answer_prefix),
        )

    def _text_tokens(self, text: str) -> tuple[int, ...]:
        """Tokens of text that others wrote: a control token's spelling in it is plain characters."""
        return self._plain(self._tokens(text, special=False))

    def _plain(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        for token in tokens:
            if library.llama_vocab_is_control(self._vocab, token) or self._end_tokens[token]:
                raise LanguageModelError(f"the tokeniser of {self.path.name} reads control token {token} from plain text")
        return tokens

    def _tokens(self, text: str, *, special: bool) -> tuple[int, ...]:
        data = text.encode("utf-8")
        if not data:
            return ()
        buffer = (library.llama_token * (len(data) + 8))()
        count = library.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise LanguageModelError(f"text of {len(data)} bytes cannot be tokenised (code {count})")
        return tuple(buffer[:count])

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = library.llama_token_to_piece(self._vocab, token, buffer, PIECE_BYTES, 0, False)
        if length < 0:
            raise LanguageModelError(f"token {token} has {-length} bytes; at most {PIECE_BYTES} are expected")
        return buffer.raw[:length]

    def _restore(self, prefix: tuple[int, ...]) -> None:
        """Leaves the cache holding `prefix` and nothing else, by the same bytes every time."""
        if prefix == self._loaded_prefix and library.llama_memory_seq_rm(self._memory, 0, len(prefix), -1):
            self.token_counts["stage2_kept"] += len(prefix)
            return
        self._loaded_prefix = None
        library.llama_memory_clear(self._memory, True)
        state = self._prefix_states.get(prefix)
        if state is None:
            self._decode(prefix)
            self.token_counts["stage2_decoded"] += len(prefix)
            _remember(self._prefix_states, prefix, self._state())
        else:
            source = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            if library.llama_state_seq_set_data(self._context, source, len(state), 0) == 0:
                raise LanguageModelError("llama.cpp cannot read back the kept prefix")
            self._prefix_states.move_to_end(prefix)
            self.token_counts["stage2_kept"] += len(prefix)
        self._loaded_prefix = prefix

    def _state(self) -> bytes:
        size = library.llama_state_seq_get_size(self._context, 0)
        buffer = (ctypes.c_uint8 * size)()
        written = library.llama_state_seq_get_data(self._context, buffer, size, 0)
        return bytes(memoryview(buffer)[:written])

    def _decode(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[start : start + BATCH_TOKENS]
            array = (library.llama_token * len(part))(*part)  # the batch points into it: must outlive the call
            code = library.llama_decode(self._context, library.llama_batch_get_one(array, len(part)))
            if code != 0:
                raise LanguageModelError(f"llama.cpp cannot decode {len(part)} tokens (code {code}): {last_llama_errors()}")


def _parameters(context_tokens: int, threads: int) -> Any:
    parameters = library.llama_context_default_params()
    parameters.n_ctx = context_tokens
    parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.no_perf = True
    return parameters


def _context(path: Path, model: Any, parameters: Any, lora: Any) -> Any:
    context = library.llama_init_from_model(model, parameters)
    if context is None:
        raise ModelFileError(f"{path}: no context of {parameters.n_ctx} tokens can be made: {last_llama_errors()}")
    if lora is not None:
        adapters = (library.llama_adapter_lora_p_ctypes * 1)(lora)
        if library.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) != 0:
            library.llama_free(context)
            raise ModelFileError(f"{path}: llama.cpp cannot put the adapter to use: {last_llama_errors()}")
    return context


def _lora(model: Any, adapter: Path) -> Any:
    """Lives as long as the model, which frees it."""
    lora = library.llama_adapter_lora_init(model, os.fsencode(adapter))
    if not lora:  # a null pointer, not None
        raise ModelFileError(f"{adapter}: llama.cpp cannot load it as an adapter of this model: {last_llama_errors()}")
    return lora


def _greedy(logits: npt.NDArray[np.single], allowed: npt.NDArray[np.intc] | None) -> tuple[int, float]:
    """The likeliest allowed token (the lowest id of equal ones) and its natural-log probability among the allowed."""
    scores = logits.astype(np.float64) if allowed is None else logits[allowed].astype(np.float64)
    if scores.size == 0:
        raise LanguageModelError("the grammar allows no token")
    best = int(np.argmax(scores))
    if not np.isfinite(scores[best]):
        raise LanguageModelError("the model's scores are not finite")
    logprob = -float(np.log(np.exp(scores - scores[best]).sum()))
    return (best if allowed is None else int(allowed[best])), min(logprob, 0.0)


def _special_text(model: Any) -> dict[str, str]:
    vocab = library.llama_model_get_vocab(model)
    names = {"bos_token": library.llama_vocab_bos(vocab), "eos_token": library.llama_vocab_eos(vocab)}
    return {name: library.llama_vocab_get_text(vocab, token).decode("utf-8") if token >= 0 else "" for name, token in names.items()}


def _remember(kept: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    kept[key] = value
    while len(kept) > KEPT_PREFIXES:
        kept.popitem(last=False)


def _free(model: Any, contexts: list[Any]) -> None:
    for context in contexts:
        library.llama_free(context)
    library.llama_model_free(model)

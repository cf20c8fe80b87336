"""Completions kept by the hash of their prompt: repeats a run without its model, or saves asking twice."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from configs.contracts import ChatPrompt, Completion, LanguageModel
from stage2_relations.language_model import AlignedCompletion, LanguageModelError, TokenCounter

__all__ = ["RecordedModel", "RecordingError", "prompt_hash"]

_UNLIMITED_TOKENS = sys.maxsize


class RecordingError(Exception):
    """A recording that cannot be used: `file:line: what was found; what is expected`."""


def prompt_hash(prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> str:
    """Hexadecimal sha256 of everything that an answer depends on besides the model."""
    parts = [prompt.system, prompt.prefix, prompt.body, prompt.answer_prefix, grammar, max_tokens]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


class RecordedModel:
    """A LanguageModel and TokenCounter over a JSON Lines file; what the file does not know, `model` answers, and it is recorded.

    The file holds hashes of prompts, answers and token counts: no report text. Not for two processes at once.
    """

    def __init__(self, path: Path, model: LanguageModel | None = None) -> None:
        """Reads the file if there is one.

        Args:
            path: Made on the first new answer.
            model: None replays only.

        Raises:
            RecordingError: a line that is not whole, or another model's recording.
        """
        self._path = path
        self._model = model
        self._completions: dict[str, Completion] = {}
        self._counts: dict[str, int] = {}
        self._model_hash: str | None = getattr(model, "content_hash", None)
        self._context_tokens = model.context_tokens if isinstance(model, TokenCounter) else None
        self._has_header = path.exists()
        if self._has_header:
            self._read()
        elif model is None:
            raise RecordingError(f"{path}: file does not exist; a recording is expected where no model is given")

    @property
    def content_hash(self) -> str | None:
        """The recorded model's; None if it has none."""
        return self._model_hash

    @property
    def context_tokens(self) -> int:
        """The recorded model's; without bound if that model does not count tokens."""
        return _UNLIMITED_TOKENS if self._context_tokens is None else self._context_tokens

    def count_tokens(self, prompt: ChatPrompt) -> int:
        """As recorded; 0 for a model that does not count tokens. Raises LanguageModelError as `complete` does."""
        if self._context_tokens is None:
            return 0
        key = prompt_hash(prompt, grammar=None, max_tokens=0)
        if key not in self._counts:
            if not isinstance(self._model, TokenCounter):
                raise LanguageModelError(f"no token count is recorded for prompt {key[:12]}")
            self._counts[key] = self._model.count_tokens(prompt)
            self._append({"prompt": key, "tokens": self._counts[key]})
        return self._counts[key]

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        """As recorded, else the model's own; failures of the model are not recorded.

        Raises:
            LanguageModelError: the model's, or no recording and no model.
        """
        key = prompt_hash(prompt, grammar=grammar, max_tokens=max_tokens)
        if key not in self._completions:
            if self._model is None:
                raise LanguageModelError(f"no answer is recorded for prompt {key[:12]}")
            completion = self._model.complete(prompt, grammar=grammar, max_tokens=max_tokens)
            self._completions[key] = completion
            self._append({"prompt": key, **_completion_fields(completion)})
        return self._completions[key]

    def _append(self, row: dict[str, Any]) -> None:
        rows = [row] if self._has_header else [{"model": self._model_hash, "context_tokens": self._context_tokens}, row]
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows))
        self._has_header = True

    def _read(self) -> None:
        lines = self._path.read_text(encoding="utf-8").split("\n")
        if lines.pop():
            raise RecordingError(f"{self._path}:{len(lines) + 1}: the last line is cut; remove it to go on")
        for number, line in enumerate(lines, start=1):
            try:
                self._take(json.loads(line), is_header=number == 1)
            except (ValueError, KeyError, TypeError) as error:
                raise RecordingError(f"{self._path}:{number}: not a line of a recording ({type(error).__name__})") from None
        if not lines:
            raise RecordingError(f"{self._path}:1: file is empty; a line that names the model is expected")

    def _take(self, row: dict[str, Any], *, is_header: bool) -> None:
        if is_header:
            recorded, context_tokens = row["model"], row["context_tokens"]
            if self._model is not None and (recorded, context_tokens) != (self._model_hash, self._context_tokens):
                found = f"model {str(recorded)[:12]} with a context of {context_tokens}"
                raise RecordingError(f"{self._path}:1: {found}; expected {str(self._model_hash)[:12]} with {self._context_tokens}")
            self._model_hash, self._context_tokens = recorded, context_tokens
        elif "tokens" in row:
            self._counts[row["prompt"]] = int(row["tokens"])
        else:
            self._completions[row["prompt"]] = _completion(row)


def _completion_fields(completion: Completion) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": completion.text,
        "token_logprobs": completion.token_logprobs,
        "finished": completion.finished,
    }
    if isinstance(completion, AlignedCompletion):
        fields["token_ends_chars"] = completion.token_ends_chars
    return fields


def _completion(row: dict[str, Any]) -> Completion:
    logprobs = None if row["token_logprobs"] is None else tuple(row["token_logprobs"])
    if "token_ends_chars" in row:
        return AlignedCompletion(row["text"], logprobs, row["finished"], tuple(row["token_ends_chars"]))
    return Completion(row["text"], logprobs, row["finished"])

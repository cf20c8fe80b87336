"""Keeps llama.cpp off standard error: its log goes to a buffer, and the last errors into our own messages."""

from __future__ import annotations

import ctypes
from collections import deque

import llama_cpp.llama_cpp as library

LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
_kept: deque[str] = deque(maxlen=4)


def _keep(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    if level == LEVEL_ERROR:
        _kept.append(text.decode("utf-8", errors="replace").strip())


_callback = library.llama_log_callback(_keep)  # llama.cpp keeps a bare pointer to it


def silence_llama() -> None:
    """Routes the log of llama.cpp and ggml in this process away from standard error (`verbose=False` still prints some)."""
    library.llama_log_set(_callback, ctypes.c_void_p(0))


def last_llama_errors() -> str:
    """The latest error lines of llama.cpp, oldest first; empties the buffer. They name files and tensors, never prompts."""
    lines = [line for line in _kept if line]
    _kept.clear()
    return " | ".join(lines) or "llama.cpp gave no reason"

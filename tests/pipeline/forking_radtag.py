"""Starts the radtag command line in forked processes, which costs a few hundredths of a second each: for tests that kill many.

Reads one JSON object a line from standard input and answers with the process id of the run:
{"arguments": [...], "seconds": stage 2 a report, "die_at_write": n or null}. With die_at_write the run kills itself, as `kill -9`
does, right before its n-th operation on the run directory (syncing, renaming, removing, making a folder). An empty line waits for
the run and answers with its exit code (negative: the signal).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.argv = [sys.argv[0], "0"]
import slow_radtag  # noqa: E402  # takes its seconds from the command line

import pipeline.tagging  # noqa: E402, F401  # loaded once, before the forks
from pipeline.cli import app  # noqa: E402


def die_at_write(n_operations: int) -> None:
    n_left = n_operations

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return run

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
    Path.mkdir = counted(Path.mkdir)  # type: ignore[method-assign]


def run_forked(given: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        slow_radtag.SECONDS = given["seconds"]
        if given["die_at_write"] is not None:
            die_at_write(given["die_at_write"])
        code = 70
        try:
            app(given["arguments"])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 70
        finally:
            os._exit(code)
    return pid


if __name__ == "__main__":
    pid = 0
    for line in sys.stdin:
        if line.strip():
            pid = run_forked(json.loads(line))
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()

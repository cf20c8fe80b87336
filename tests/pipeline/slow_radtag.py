"""The radtag command line with a slow stage 2 that dies on demand; run as a script, so that spawned workers are patched too.

    python slow_radtag.py SECONDS_A_REPORT [radtag arguments]

A report that holds DIE ends its process like a crash would. With RADTAG_TEST_DIE_ONCE=FILE only while FILE does not exist.
With RADTAG_TEST_CLOCK_BACK_S the clock on the wall is that many seconds behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.contracts import EntityFinding, Reading, Report
from configs.schema import load_task
from pipeline import run, settings

SECONDS = float(sys.argv[1])


class SlowMapper:
    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def relate(self, reports: Sequence[Report], flags: Sequence[object]) -> list[Reading]:
        readings = []
        for report in reports:
            time.sleep(SECONDS)
            if "DIE" in report.text:
                die()
            readings.append(Reading(tuple(EntityFinding(key, key in report.text, 0.5) for key in self.keys), ()))
        return readings


def die() -> None:
    once = os.environ.get("RADTAG_TEST_DIE_ONCE")
    if once is None or not Path(once).exists():
        if once is not None:
            Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def set_clock_back(seconds: float) -> None:
    right_time = time.time
    time.time = lambda: right_time() - seconds


def build_slowly(filled: Any, provenance: Mapping[str, str]) -> run.Pipeline:
    task = load_task(filled.task)
    return run.Pipeline(task, None, SlowMapper(task.keys), provenance)  # type: ignore[arg-type]


settings.RESULT_CODE = ()  # these tests are about parts, not about the fingerprint of code that is being edited beside them
run.build_pipeline = build_slowly  # type: ignore[assignment]

if "RADTAG_TEST_CLOCK_BACK_S" in os.environ:
    set_clock_back(float(os.environ["RADTAG_TEST_CLOCK_BACK_S"]))

if __name__ == "__main__":
    from pipeline.cli import app

    app(sys.argv[2:])

"""`kill -9` at random moments, seeded: 24 by the clock, 10 between two operations of the writer, 4 with worker processes.

After each kill `verify` finds nothing wrong, only parts that are not there yet; the run that goes on to its end has the bytes of an
undisturbed one. Two more kills, of a Ray actor and of a run on Ray, are in test_ray_engine.py. RADTAG_TEST_KILLS=10 makes ten times
as many.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from pipeline.archive import RUN_FILE
from pipeline.verify import verify_run

HERE = Path(__file__).parent
ENVIRONMENT = {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
TIMES = int(os.environ.get("RADTAG_TEST_KILLS", "1"))
REPORT_S = 0.01
RUN_S = 0.9  # an undisturbed run of 60 reports, about


class ForkedRuns:
    """Runs of one input in one folder after the other."""

    def __init__(self, source: Path, task_file: Path) -> None:
        self.options = [str(source), "--task", str(task_file), "--system", "rules", "--chunk-reports", "4", "--resume"]
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "forking_radtag.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
            env=ENVIRONMENT,
        )

    def start(self, out: Path, *options: object, seconds: float = REPORT_S, die_at_write: int | None = None) -> int:
        """Its process id."""
        arguments = ["tag", *self.options, "--out", str(out), *map(str, options)]
        return self._ask(json.dumps({"arguments": arguments, "seconds": seconds, "die_at_write": die_at_write}))

    def wait(self) -> int:
        """The exit code of the run; negative is a signal."""
        return self._ask("")

    def kill(self, out: Path, after_s: float) -> bool:
        """Whether the run was still at work when it was killed."""
        process = self.start(out)
        time.sleep(after_s)
        os.kill(process, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def finish(self, out: Path, *options: object) -> None:
        self.start(out, *options, seconds=0.0)
        assert self.wait() == 1  # some of the reports cannot be read

    def close(self) -> None:
        self._server.kill()
        self._server.communicate()

    def _ask(self, line: str) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def rows_with_repeats(n_reports: int) -> list[dict[str, object]]:
    """Every third text stands again and again; some are blank."""
    said = ("A nodule in the right lung.", "Nothing to see.", "우측 결절 있음. mass", "   ")
    return [
        {"report_id": f"r{n}", "text": said[n % 4] + (f" #{n}" if n % 3 and n % 4 != 3 else ""), "patient_id": f"p{n % 7}"}
        for n in range(n_reports)
    ]


@pytest.fixture
def runs(write_jsonl: Callable[[Sequence[object]], Path], task_file: Path) -> Iterator[ForkedRuns]:
    started = ForkedRuns(write_jsonl(rows_with_repeats(60)), task_file)
    yield started
    started.close()


@pytest.fixture
def whole(runs: ForkedRuns, tmp_path: Path, parts_of) -> dict[str, bytes]:
    """The part files of a run that nothing disturbed."""
    runs.finish(tmp_path / "whole")
    return parts_of(tmp_path / "whole")


def check_stopped(out: Path) -> None:
    """What lies there is right as far as it goes."""
    if (out / RUN_FILE).exists():
        found = verify_run(out)
        assert found.problems == []
        assert found.n_records == 60 or found.n_unfinished > 0


@pytest.mark.parametrize("seed", range(3 * TIMES))
def test_killed_at_eight_random_moments_the_bytes_are_those_of_an_undisturbed_run(
    runs: ForkedRuns, whole: dict[str, bytes], tmp_path: Path, parts_of, seed: int
) -> None:
    moments = random.Random(seed)
    n_kills, out = 0, tmp_path / "out"
    while n_kills < 8:
        if runs.kill(out, moments.uniform(0, RUN_S)):
            n_kills += 1
            check_stopped(out)
        else:  # it was done before: the next kills hit another run
            assert parts_of(out) == whole
            out = out.with_name(out.name + "-next")
    runs.finish(out)
    assert parts_of(out) == whole
    found = verify_run(out)
    assert (found.problems, found.n_unfinished, found.n_records) == ([], 0, 60)


@pytest.mark.parametrize("seed", range(TIMES))
def test_killed_between_two_operations_of_the_writer_nothing_is_lost(
    runs: ForkedRuns, whole: dict[str, bytes], tmp_path: Path, parts_of, seed: int
) -> None:
    moments = random.Random(1000 + seed)
    n_kills, out = 0, tmp_path / "out"
    while n_kills < 10:
        runs.start(out, seconds=0.0, die_at_write=moments.randint(1, 30))
        if runs.wait() == -signal.SIGKILL:
            n_kills += 1
            check_stopped(out)
        else:
            assert parts_of(out) == whole
            out = out.with_name(out.name + "-next")
    runs.finish(out)
    assert parts_of(out) == whole


@pytest.mark.parametrize("seed", range(TIMES))
def test_killed_workers_and_their_killed_parent_lose_nothing(
    runs: ForkedRuns, whole: dict[str, bytes], tmp_path: Path, parts_of, seed: int
) -> None:
    moments = random.Random(2000 + seed)
    out = tmp_path / "out"
    for _ in range(2):
        command = [sys.executable, str(HERE / "slow_radtag.py"), "0.05", "tag", *runs.options, "--out", str(out), "--workers", "2"]
        parent = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        wait_for_a_part(out)
        time.sleep(moments.uniform(0, 0.3))
        workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == 2
        moments.choice(workers).kill()
        wait_for_a_part(out)  # the other worker goes on, a new one takes the place of the dead
        time.sleep(moments.uniform(0, 0.3))
        parent.kill()
        assert parent.wait() == -signal.SIGKILL
        check_stopped(out)
    runs.finish(out)
    assert parts_of(out) == whole


def wait_for_a_part(out: Path) -> None:
    def n_parts() -> int:
        return len(list((out / "parts").glob("*.sha256")))

    wanted, deadline = n_parts() + 1, time.monotonic() + 60
    while n_parts() < wanted:
        assert time.monotonic() < deadline, "no part was written in a minute"
        time.sleep(0.01)

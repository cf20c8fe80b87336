"""Runs that are killed, interrupted, starved of disk or doubled, in processes of their own."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("slow_radtag.py")
ROOT = Path(__file__).parents[2]


def hear_ctrl_c() -> None:
    """Undoes what a shell does to the processes that it starts in the background: they ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start(task_file: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(source: Path, out: Path, *options: object, seconds: float = 0.0, **popen: object) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            SCRIPT,
            seconds,
            "tag",
            source,
            "--task",
            task_file,
            "--out",
            out,
            "--system",
            "rules",
            "--chunk-reports",
            4,
        ]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | popen.pop("env", {})  # type: ignore[operator]
        popen.setdefault("preexec_fn", hear_ctrl_c)
        process = subprocess.Popen(
            [str(word) for word in [*command, *options]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            **popen,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def whole(start, many_reports: Path, tmp_path: Path, parts_of) -> dict[str, bytes]:
    """The part files of a run that nothing disturbed."""
    process = start(many_reports, tmp_path / "whole")
    process.communicate(timeout=60)
    assert process.returncode == 1
    return parts_of(tmp_path / "whole")


def wait_for_parts(out: Path, n_parts: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((out / "parts").glob("*.sha256"))) < n_parts:
        assert time.monotonic() < deadline, "no parts were written in a minute"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_and_resume_give_the_same_bytes(start, many_reports, tmp_path: Path, whole, parts_of, workers: int) -> None:
    out = tmp_path / "out"
    killed = start(many_reports, out, "--workers", workers, seconds=0.02)
    wait_for_parts(out, 3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 3 <= len(parts_of(out)) // 2 < 15
    resumed = start(many_reports, out, "--resume", "--workers", workers)
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 1, errors
    assert "in whole parts already" in errors
    assert parts_of(out) == whole


def test_any_number_of_workers_writes_the_same_bytes(start, many_reports, tmp_path: Path, whole, parts_of) -> None:
    process = start(many_reports, tmp_path / "out", "--workers", 3)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1, errors
    assert parts_of(tmp_path / "out") == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_whole_parts_and_says_how_to_go_on(
    start, many_reports, tmp_path: Path, whole, parts_of, workers: int
) -> None:
    out = tmp_path / "out"
    process = start(many_reports, out, "--workers", workers, seconds=0.02)
    wait_for_parts(out, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped; the parts written so far are whole, the same command with --resume goes on" in errors
    assert not list(out.rglob("*.tmp"))
    assert parts_of(out).items() <= whole.items()
    resumed = start(many_reports, out, "--resume")
    resumed.communicate(timeout=60)
    assert parts_of(out) == whole


def test_a_second_run_on_the_same_folder_is_refused(start, many_reports, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(many_reports, out, seconds=0.05)
    wait_for_parts(out, 1)
    second = start(many_reports, out, "--resume")
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"another run writes here (process {first.pid} on host {socket.gethostname()})" in errors
    assert first.poll() is None


def test_a_lock_left_by_another_host_is_named(start, many_reports, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.lock").write_text("process 12 on host elsewhere")
    process = start(many_reports, out)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "process 12 on host elsewhere did not finish here" in errors) == (2, True)


def test_a_full_disk_is_one_line_and_leaves_whole_parts(start, many_reports, tmp_path: Path, whole, parts_of) -> None:
    """A file-size limit stands in for a full disk: writing stops in the middle of a part, as it would there."""
    # The largest part does not fit; run.json, which is written first and holds the paths of this test, must.
    limit = max(len(data) for name, data in whole.items() if name.endswith(".jsonl")) - 1
    out = tmp_path / "out"
    process = start(many_reports, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].endswith("parts written so far are whole, go on with --resume")
    assert not list(out.rglob("*.tmp"))
    resumed = start(many_reports, out, "--resume")
    resumed.communicate(timeout=60)
    assert parts_of(out) == whole


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_really_full_disk_is_one_line_and_leaves_whole_parts(start, many_reports, tiny_disk: Path, whole, parts_of) -> None:
    process = start(many_reports, tiny_disk / "out")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "No space left on device" in errors.splitlines()[-1]
    checked = {name for name in parts_of(tiny_disk / "out") if name.endswith(".sha256")}
    assert checked
    assert all(parts_of(tiny_disk / "out")[name] == whole[name] for name in checked)


def test_a_clock_that_was_set_back_changes_nothing(start, many_reports, tmp_path: Path, whole, parts_of) -> None:
    out = tmp_path / "out"
    killed = start(many_reports, out, seconds=0.02)
    wait_for_parts(out, 3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    in_ten_years = time.time() + 10 * 365 * 86400
    for path in (out, *out.rglob("*")):
        os.utime(path, (in_ten_years, in_ten_years))
    standing = {path.name: path.stat().st_ino for path in (out / "parts").glob("*.sha256")}
    resumed = start(many_reports, out, "--resume", env={"RADTAG_TEST_CLOCK_BACK_S": "3e8"})
    _, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 1, errors
    assert parts_of(out) == whole
    assert all((out / "parts" / name).stat().st_ino == inode for name, inode in standing.items())  # not written again
    assert 0 <= json.loads((out / "summary.json").read_text())["seconds"] < 60


def with_a_deadly_report(path: Path) -> Path:
    deadly = path.with_name("deadly.jsonl")
    lines = path.read_text("utf-8").splitlines()
    lines[21] = lines[21].replace("#21", "DIE #21")
    deadly.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return deadly


def test_a_chunk_that_kills_its_worker_twice_is_named_and_the_others_stand(start, many_reports, tmp_path: Path, parts_of) -> None:
    source = with_a_deadly_report(many_reports)
    process = start(source, tmp_path / "out", "--workers", 2)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 3
    assert "Traceback" not in errors
    assert "part-000005-" in errors.splitlines()[-1]
    assert "(reports 'r20' to 'r23'): the process that tagged it ended 2 times, lastly with signal 9" in errors
    assert len(parts_of(tmp_path / "out")) // 2 >= 5


def test_a_worker_that_dies_once_is_replaced(start, many_reports, tmp_path: Path, parts_of) -> None:
    source = with_a_deadly_report(many_reports)
    process = start(source, tmp_path / "out", "--workers", 2, env={"RADTAG_TEST_DIE_ONCE": str(tmp_path / "died")})
    _, errors = process.communicate(timeout=100)
    assert (tmp_path / "died").exists()
    assert process.returncode == 1, errors
    assert len(parts_of(tmp_path / "out")) // 2 == 15


def test_workers_do_not_outlive_a_killed_parent(start, many_reports, tmp_path: Path) -> None:
    import psutil

    process = start(many_reports, tmp_path / "out", "--workers", 2, seconds=0.02)
    wait_for_parts(tmp_path / "out", 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive

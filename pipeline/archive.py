"""A run directory: its settings, its part files with checksums, and the lock against a second writer.

    DIR/run.json                      fingerprint, settings, input; written first
    DIR/parts/part-000012-<hash>.jsonl          one chunk's records
    DIR/parts/part-000012-<hash>.jsonl.sha256   written after it, readable by `sha256sum -c`
    DIR/summary.json                  written last, removed before anything is written again
    DIR/run.lock                      who writes; locked by the operating system as long as that process lives

Every file is written to a temporary name, synced and renamed. A part is whole when its checksum file says so; resuming is skipping
whole parts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

PARTS = "parts"
RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = "run.lock"
TEMPORARY = ".tmp"
FORMAT = 1
_PART_NAME = re.compile(r"part-\d{6,}-[0-9a-f]{16}")
# Fields of RunInput that say how the input is read, and the options of `radtag tag` that set them.
_READING_OPTIONS = {
    "report_id_column": "--id-column",
    "text_column": "--text-column",
    "patient_column": "--patient-column",
    "date_column": "--date-column",
    "encoding": "--encoding",
}


class ArchiveError(Exception):
    """A run directory that cannot be used or written: path, what was found, what to do."""


class RunInput(BaseModel):
    """Where the reports came from, so that `show` and `verify` find them again. None columns mean the default names.

    `where` and `limit` are the options of `radtag tag`: only those rows belong to the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    given: str
    report_id_column: str
    text_column: str
    patient_column: str | None
    date_column: str | None
    encoding: str = "utf-8"
    n_reports: int
    content_hash: str
    where: tuple[str, ...] = ()
    limit: int | None = None


class RunFile(BaseModel):
    """run.json. `provenance` is everything that can change a record; `fingerprint` is its hash and stands in every record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    radtag_run: int = FORMAT
    fingerprint: str
    provenance: dict[str, str]
    settings: dict[str, Any]
    chunk_reports: int
    input: RunInput


def read_run(folder: Path) -> RunFile:
    """The run of a directory. Raises ArchiveError when it is none."""
    path = folder / RUN_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        kind = "is no run directory (no run.json)" if folder.exists() else "does not exist"
        raise ArchiveError(f"{folder}: {kind}") from None
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        run = RunFile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise ArchiveError(f"{path}: is no run file: {'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}") from None
    if run.radtag_run != FORMAT:
        raise ArchiveError(f"{path}: has format {run.radtag_run}; this version reads format {FORMAT}")
    return run


def started_run(folder: Path, *, resume: bool) -> RunFile | None:
    """The run that `folder` already holds, or None when a new one may begin there. Writes nothing.

    Raises:
        ArchiveError: the folder holds something else, or a run and `resume` is off, or is no folder.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise ArchiveError(f"{folder}: is a file; a folder is expected")
        held = {path.name for path in folder.iterdir()} if folder.exists() else set()
        begun = PARTS in held and any((folder / PARTS).iterdir())
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be read: {error.strerror}") from None
    # A start that was killed before run.json stood left no more than these.
    if not begun and held <= {LOCK_FILE, RUN_FILE + TEMPORARY, PARTS}:
        return None
    if RUN_FILE not in held:
        raise ArchiveError(f"{folder}: is not empty and holds no run; give --out a new or empty folder")
    run = read_run(folder)
    if not resume:
        raise ArchiveError(f"{folder}: holds a run; go on with it with --resume, or give --out a new folder")
    return run


def refuse_other_run(folder: Path, before: RunFile, now: RunFile) -> None:
    """Raises ArchiveError when `now` would not write the records that `before` began; says which part differs."""
    if before.fingerprint != now.fingerprint or before.provenance != now.provenance:
        names = sorted(set(before.provenance) | set(now.provenance))
        changed = [
            f"{name} ({before.provenance.get(name, 'none')[:12]} then, {now.provenance.get(name, 'none')[:12]} now)"
            for name in names
            if before.provenance.get(name) != now.provenance.get(name)
        ]
        raise ArchiveError(f"{folder}: was begun with other settings: {', '.join(changed)}; give --out a new folder")
    for name in ("where", "limit"):
        then, given = getattr(before.input, name), getattr(now.input, name)
        if then != given:
            told = " and ".join(then) if isinstance(then, tuple) else then
            begun = f"with --{name} {told}" if told else f"without --{name}"
            raise ArchiveError(f"{folder}: was begun {begun}; go on in the same way, or give --out a new folder")
    if before.input.content_hash != now.input.content_hash:
        if told := _other_reading(before.input, now.input):
            raise ArchiveError(f"{folder}: was begun {told}; go on in the same way, or give --out a new folder")
        counts = f"{before.input.n_reports} reports then, {now.input.n_reports} now"
        raise ArchiveError(f"{folder}: was begun with other reports ({counts}); give --out a new folder")


def _other_reading(before: RunInput, now: RunInput) -> str:
    """The options that `before` was read with and `now` was not; empty when both were read in the same way."""
    told = []
    for name, option in _READING_OPTIONS.items():
        then: str | None = getattr(before, name)
        if then != getattr(now, name):
            told.append(f"without {option}" if then is None else f"with {option} {shlex.quote(then)}")
    return " and ".join(told)


class Archive:
    """The one writer of a run directory. Use `opened`, then `begin_parts`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts = folder / PARTS

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, run: RunFile, *, resume: bool) -> Iterator[Archive]:
        """Locks the folder, writes run.json where there is none yet and clears unfinished files.

        Which parts are whole is certain only inside: until the lock is held another run may still write some.

        Raises:
            ArchiveError: another process writes there, another run stands there, or the folder cannot be written.
        """
        archive = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK_FILE).open("a+", encoding="utf-8")
        except OSError as error:
            raise ArchiveError(f"{folder}: cannot be written: {error.strerror}") from None
        with lock, _locked(lock, folder):
            before = started_run(folder, resume=resume)  # again, now that nobody else can begin one
            if before is not None:
                refuse_other_run(folder, before, run)
            archive._make_ready(run)
            yield archive

    def _make_ready(self, run: RunFile) -> None:
        try:
            self.parts.mkdir(exist_ok=True)
            unfinished = [self.folder / f"{name}{TEMPORARY}" for name in (RUN_FILE, SUMMARY_FILE)]
            for left in (*unfinished, *self.parts.glob(f"part-*{TEMPORARY}")):
                left.unlink(missing_ok=True)
            if not (self.folder / RUN_FILE).exists():
                _write_whole(self.folder / RUN_FILE, (run.model_dump_json(indent=1) + "\n").encode())
        except OSError as error:
            raise ArchiveError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def begin_parts(self, *, missing: Collection[str], retried: Collection[str] = ()) -> None:
        """Says that parts are about to be written; with any, the summary of an earlier end is removed.

        Args:
            missing: Names of the parts that are not whole; what lies there of them is not taken for it any more.
            retried: Names of whole parts that are to be written again.

        Raises:
            ArchiveError: the folder cannot be written.
        """
        stale = [_checksum_path(self.parts / f"{name}.jsonl") for name in missing]
        if missing or retried:
            stale.insert(0, self.folder / SUMMARY_FILE)
        try:
            for path in stale:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise ArchiveError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def write_part(self, name: str, records: bytes, *, n_records: int) -> None:
        """Raises ArchiveError when the disk refuses; the parts that stand stay whole."""
        path = self.parts / f"{name}.jsonl"
        digest = hashlib.sha256(records).hexdigest()
        try:
            _checksum_path(path).unlink(missing_ok=True)
            _write_whole(path, records)
            _write_whole(_checksum_path(path), f"# {n_records} records\n{digest}  {path.name}\n".encode())
        except OSError as error:
            raise ArchiveError(
                f"{self.folder}: cannot write {path.name}: {error.strerror}; parts written so far are whole, go on with --resume"
            ) from None

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Raises ArchiveError when the disk refuses."""
        try:
            _write_whole(self.folder / SUMMARY_FILE, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise ArchiveError(f"{self.folder}: cannot write {SUMMARY_FILE}: {error.strerror}; go on with --resume") from None


def part_problem(folder: Path, name: str) -> str | None:
    """Why the part is not whole, or None when it is."""
    path = folder / PARTS / f"{name}.jsonl"
    try:
        recorded = _checksum_path(path).read_text(encoding="ascii").split()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, UnicodeDecodeError):
        return f"{path.name} or its checksum cannot be read"
    if len(recorded) != 5 or recorded[0] != "#" or recorded[2] != "records" or recorded[4] != path.name:
        return f"{path.name}.sha256 is damaged"
    if recorded[3] != found:
        return f"{path.name} is damaged: its sha256 is {found[:12]}…, {recorded[3][:12]}… was written"
    return None


def is_finished_part(folder: Path, name: str) -> bool:
    """Whether a checksum file says that the part was written to its end; `part_problem` also compares the bytes."""
    return _checksum_path(folder / PARTS / f"{name}.jsonl").exists()


def is_finished_run(folder: Path) -> bool:
    """Whether a start came to its end and nothing was begun since: the summary is written last and removed first."""
    return (folder / SUMMARY_FILE).exists()


def require_whole(folder: Path, name: str) -> None:
    """Raises ArchiveError when the part is not whole, or no part of a run by its name."""
    problem = part_problem(folder, name) if _PART_NAME.fullmatch(name) else f"{PARTS}/{name} is no part file; remove it"
    if problem is not None:
        raise ArchiveError(f"{folder}: {problem}; tag again with --resume")


def part_bytes(folder: Path, name: str) -> bytes:
    """The records of a part as they lie on disk; whether they are whole, `part_problem` says."""
    return (folder / PARTS / f"{name}.jsonl").read_bytes()


def part_names(folder: Path) -> list[str]:
    """Names of the part files that lie in the directory, whole or not, in order."""
    names = {path.name.split(".")[0] for path in (folder / PARTS).glob("part-*.jsonl*")}
    return sorted(names, key=lambda name: (int(name.split("-")[1]) if name.split("-")[1].isdigit() else -1, name))


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _write_whole(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _locked(lock: Any, folder: Path) -> Iterator[None]:
    """The operating system drops the lock when its process ends, however it ends; the text in it is for people and other hosts."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise ArchiveError(f"{folder}: another run writes here ({lock.read().strip() or 'it has just begun'})") from None
    except OSError as error:
        raise ArchiveError(f"{folder}: its file system cannot lock {LOCK_FILE}: {error.strerror}") from None
    lock.seek(0)
    before = lock.read().strip()
    here = socket.gethostname()
    if before and not before.endswith(f"host {here}"):
        raise ArchiveError(f"{folder}: {before} did not finish here; if that process has ended, delete {folder / LOCK_FILE}")
    try:
        _write_owner(lock, f"process {os.getpid()} on host {here}")
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        _write_owner(lock, "")


def _write_owner(lock: Any, owner: str) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(owner)
    lock.flush()

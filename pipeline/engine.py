"""Runs a pipeline over chunks: in this process or in several. Which one, and in which order chunks come back, changes no byte.

An engine only moves work. What is done is decided by the part files, so a further engine needs `tag_chunk` and nothing else.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Literal, Protocol

from pipeline import run
from pipeline.chunks import Chunk
from pipeline.missing import MissingChunks
from pipeline.records import record_line
from pipeline.settings import Settings

ATTEMPTS = 2


class EngineError(Exception):
    """Work that no process could do."""


@dataclass(frozen=True, slots=True)
class TaggedChunk:
    """A chunk's part: its records as JSON Lines, and what they took.

    Attributes:
        n_read: Reports that went through the stages; the others stood already.
        stage_seconds: Wall time a stage.
        tokens: Tokens by kind, of the stages that count them.
    """

    name: str
    records: bytes
    n_records: int
    n_read: int
    stage_seconds: Mapping[str, float]
    tokens: Mapping[str, int]


def tag_chunk(pipeline: run.Pipeline, chunk: Chunk) -> TaggedChunk:
    """The same bytes for the same chunk and pipeline, wherever and whenever."""
    seconds, tokens = dict(pipeline.stage_seconds), token_counts(pipeline)
    kept = chunk.kept or (None,) * len(chunk.reports)
    records = pipeline.tag([report for report, line in zip(chunk.reports, kept, strict=True) if line is None])
    tagged = map(record_line, records)
    lines = b"".join((next(tagged).encode() if line is None else line) + b"\n" for line in kept)
    return TaggedChunk(
        chunk.name,
        lines,
        len(chunk.reports),
        len(records),
        {stage: s - seconds[stage] for stage, s in pipeline.stage_seconds.items()},
        {kind: n - tokens.get(kind, 0) for kind, n in token_counts(pipeline).items()},
    )


def token_counts(pipeline: run.Pipeline) -> dict[str, int]:
    """Tokens by kind since the pipeline was built, summed over the stages that have `token_counts`; empty where none counts."""
    counts: dict[str, int] = {}
    for stage in (pipeline.flagger, pipeline.mapper):
        for kind, n_tokens in getattr(stage, "token_counts", {}).items():
            counts[kind] = counts.get(kind, 0) + n_tokens
    return counts


class Engine(Protocol):
    """Moves chunks to pipelines and parts back."""

    def tag(self, chunks: MissingChunks) -> Iterator[TaggedChunk]:
        """Parts in the order in which they are done; the caller writes each before it takes the next."""
        ...


class LocalEngine:
    """One pipeline in this process, or one in each of `workers` processes.

    Entering loads the first pipeline, so that weights or a model that cannot be used are known before anything is written.

    Args:
        settings: With files filled in (`pipeline.settings.with_files`).
        provenance: Goes into every record.
    """

    def __init__(self, settings: Settings, provenance: Mapping[str, str], *, workers: int) -> None:
        self.settings = settings
        self.provenance = dict(provenance)
        self.n_workers = workers
        self._pipeline: run.Pipeline | None = None
        self._workers: list[_Worker] = []

    def __enter__(self) -> LocalEngine:
        if self.n_workers == 1:
            self._pipeline = run.build_pipeline(self.settings, self.provenance)
            return self
        first = self._start_worker()
        try:
            if not wait([first.connection, first.process.sentinel]) or not first.connection.poll():
                raise EngineError(f"a worker process ended while it loaded its stages ({first.end()})")
            first.receive()
        except BaseException:
            self._stop_workers()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop_workers()

    def tag(self, chunks: MissingChunks) -> Iterator[TaggedChunk]:
        """Parts in the order in which they are done.

        Raises:
            EngineError: the process that tagged a chunk died, twice; the chunks under way were given first.
        """
        if self._pipeline is not None:
            for chunk in chunks:
                yield tag_chunk(self._pipeline, chunk)
        else:
            yield from self._tag_in_workers(iter(chunks))

    def _tag_in_workers(self, chunks: Iterator[Chunk]) -> Iterator[TaggedChunk]:
        again: list[Chunk] = []
        attempts: dict[str, int] = {}
        given_up: EngineError | None = None
        while True:
            while given_up is None and (worker := self._free_worker()) is not None:
                chunk = again.pop() if again else next(chunks, None)
                if chunk is None:
                    break
                attempts[chunk.name] = attempts.get(chunk.name, 0) + 1
                worker.give(chunk)
            busy = [worker for worker in self._workers if worker.chunk is not None]
            if not busy:
                break
            wait([end for worker in busy for end in (worker.connection, worker.process.sentinel)])
            for worker in busy:
                chunk = worker.chunk
                done = worker.answer()
                if done == "dead" and chunk is not None:
                    self._workers.remove(worker)
                    if attempts[chunk.name] < ATTEMPTS:
                        again.append(chunk)
                    else:
                        given_up = chunk_given_up(chunk, ATTEMPTS, f", lastly with {worker.end()}")
                elif isinstance(done, TaggedChunk):
                    del attempts[done.name]
                    yield done
        if given_up is not None:
            raise given_up

    def _free_worker(self) -> _Worker | None:
        for worker in self._workers:
            if worker.chunk is None:
                return worker
        return self._start_worker() if len(self._workers) < self.n_workers else None

    def _start_worker(self) -> _Worker:
        worker = _Worker(self.settings, self.provenance)
        self._workers.append(worker)
        return worker

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()


class _Worker:
    """A process with a pipeline of its own, and the chunk it is at work on."""

    def __init__(self, settings: Settings, provenance: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process that holds threads (Arrow, ONNX Runtime) can hang
        self.connection, far_end = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(far_end, settings, dict(provenance)), daemon=True)
        self.process.start()
        far_end.close()  # so that either side sees the other's end
        self.chunk: Chunk | None = None

    def give(self, chunk: Chunk) -> None:
        self.chunk = chunk
        try:
            self.connection.send(chunk)
        except OSError:
            self.process.join()  # dead before it could take it; `answer` says so

    def answer(self) -> TaggedChunk | Literal["dead"] | None:
        """None when nothing has come yet. Raises what the worker raised."""
        if self.connection.poll():
            try:
                received = self.receive()
            except (EOFError, OSError):
                return "dead"
            if received is not None:
                self.chunk = None
            return received
        return None if self.process.is_alive() else "dead"

    def receive(self) -> TaggedChunk | None:
        """The next message: None says that the stages are loaded."""
        message = self.connection.recv()
        if isinstance(message, _WorkerFailure):
            raise message.error from _WorkerTracebackError(message.trace)
        return message if isinstance(message, TaggedChunk) else None

    def end(self) -> str:
        self.process.join()
        code = self.process.exitcode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


@dataclass(frozen=True, slots=True)
class _WorkerFailure:
    error: Exception
    trace: str


class _WorkerTracebackError(Exception):
    """Shows, as the cause, where in the worker an exception came up."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _work(connection: Connection, settings: Settings, provenance: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops its workers
    try:
        try:
            pipeline = run.build_pipeline(settings, provenance)
            connection.send(None)
            while True:
                connection.send(tag_chunk(pipeline, connection.recv()))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the parent is gone
        except Exception as error:  # noqa: BLE001  # raised again in the parent
            connection.send(_WorkerFailure(error, traceback.format_exc()))
    except (BrokenPipeError, ConnectionResetError):
        return


def chunk_given_up(chunk: Chunk, n_attempts: int, last: str = "") -> EngineError:
    """The error of a chunk that ended `n_attempts` processes; `last` says how the last one ended."""
    reports = f"reports '{chunk.reports[0].report_id}' to '{chunk.reports[-1].report_id}'"
    return EngineError(
        f"{chunk.name} ({reports}): the process that tagged it ended {n_attempts} times{last}; "
        "all other parts written are whole, --resume tries again"
    )

"""Runs a pipeline over chunks as Ray Data `map_batches` actors, on a cluster that runs already or on one started here.

Ray moves work; the part files decide what is done. The process that the user started holds the lock and writes the parts, and the
input is read on its machine, so neither input nor records need a shared file system. What every node needs at the same path are
radtag, the task file, weights and model; each actor compares their fingerprint with the run's before it tags.

An actor or node that dies takes nothing with it but the chunks it was at work on; Ray gives those to another one.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pipeline import run
from pipeline.archive import is_finished_part
from pipeline.engine import EngineError, TaggedChunk, chunk_given_up, tag_chunk
from pipeline.missing import MissingChunks
from pipeline.settings import Settings, SettingsError, fingerprint, provenance_parts

if TYPE_CHECKING:
    import pyarrow as pa

ATTEMPTS = 4  # a chunk may meet some deaths that are not its fault
AHEAD_CHUNKS_PER_WORKER = 4
LOOK_EVERY_S = 0.02
OBJECT_STORE_BYTES = 256 * 2**20  # of a cluster started here; a chunk of 64 reports has about 0.1 MiB
READ_CPUS = 0.01  # reading the input waits for the actors nearly all the time
PAYLOAD = "payload"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report to its makers
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ lines go to standard error
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}
OWN_CLUSTER = {
    # Ray would kill actors when others fill the machine's memory; the local engine's workers are left to the kernel, too.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_register_timeout_seconds": "300",  # a busy machine takes its time to start a process
    "RAY_worker_niceness": "0",  # Ray's default of 15 leaves actors a twentieth of a core beside other work
}


class RayEngine:
    """One pipeline in each of `workers` actors.

    Entering connects, and loads the stages once on a node, so that weights or a model that cannot be used are known before anything
    is written.

    Args:
        settings: With files filled in (`pipeline.settings.with_files`). Each actor asks its cluster for `threads` cores.
        provenance: Goes into every record.
        address: `auto` or host:port of a cluster of which this machine is a node; None starts one here, for this run.
        gpus_per_worker: 0 asks for none; with a share several actors use one.
    """

    def __init__(
        self, settings: Settings, provenance: Mapping[str, str], *, workers: int, address: str | None, gpus_per_worker: float
    ) -> None:
        self.settings = settings
        self.provenance = dict(provenance)
        self.n_workers = workers
        self.address = address
        self.resources = {"num_cpus": float(settings.threads), "num_gpus": gpus_per_worker}
        self._stack = ExitStack()

    def __enter__(self) -> RayEngine:
        ray = _imported_ray(own_cluster=self.address is None)
        try:
            self._connect(ray)
            self._refuse_small_cluster(ray)
            load = ray.remote(_load_once).options(**self.resources)
            found = pickle.loads(ray.get(load.remote(self.settings, self.provenance)))
        except (ray.exceptions.RayError, ConnectionError) as error:
            self._stack.close()
            raise EngineError(f"ray: {type(error).__name__} while the stages were loaded; nothing was tagged") from error
        except BaseException:
            self._stack.close()
            raise
        if found is not None:
            self._stack.close()
            raise found
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def tag(self, chunks: MissingChunks) -> Iterator[TaggedChunk]:
        """Parts in the order in which they are done.

        Raises:
            EngineError: a chunk ended its process `ATTEMPTS` times, or Ray gave up.
        """
        import ray

        left = set(chunks.plan.names) - chunks.done
        try:
            for block in self._dataset(chunks).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for payload in block.column(PAYLOAD).to_pylist():
                    done = pickle.loads(payload)
                    if isinstance(done, Exception):
                        raise done
                    if done.name in left:  # an actor that died after its answer may give it twice
                        left.remove(done.name)
                        yield done
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise EngineError(f"ray: {type(error).__name__}; all parts written are whole, --resume goes on") from error
        if left:
            raise EngineError(f"ray: {len(left)} parts did not come back; all parts written are whole, --resume goes on")

    def _connect(self, ray: Any) -> None:
        where: dict[str, Any] = {"address": self.address}
        if self.address is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="radtag-ray-", ignore_cleanup_errors=True))
            where = {
                "address": "local",  # whatever RAY_ADDRESS says
                "num_cpus": math.ceil(self.resources["num_cpus"] * self.n_workers) + 1,
                "num_gpus": None if self.resources["num_gpus"] else 0,
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        try:
            with _without_standard_error():
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"ray: no cluster at '{self.address or 'local'}': {type(error).__name__}") from error
        self._stack.callback(ray.shutdown)

    def _refuse_small_cluster(self, ray: Any) -> None:
        """An actor that fits on no node would be waited for without end."""
        for name, wanted in (("CPU", self.resources["num_cpus"]), ("GPU", self.resources["num_gpus"])):
            most = max(node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"])
            if wanted > most:
                options = "--threads" if name == "CPU" else "--gpus-per-worker"
                raise SettingsError(f"a Ray actor asks for {wanted:g} {name}; the largest node has {most:g} (set {options})")

    def _dataset(self, chunks: MissingChunks) -> Any:
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # every chunk is a block of its own: done when it is done
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote()
        source = _chunk_source(ray.put(chunks), n_ahead=AHEAD_CHUNKS_PER_WORKER * self.n_workers)
        return ray.data.read_datasource(source, override_num_blocks=1, num_cpus=READ_CPUS).map_batches(
            ChunkTagger,
            fn_constructor_args=(self.settings, self.provenance, attempts),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self.n_workers, max_tasks_in_flight_per_actor=2),
            **self.resources,
        )


class ChunkTagger:
    """The `map_batches` actor: one chunk in, its part out. Errors come back as rows, for Ray would log their texts."""

    def __init__(self, settings: Settings, provenance: Mapping[str, str], attempts: Any) -> None:
        self._settings = settings
        self._provenance = provenance
        self._attempts = attempts
        self._pipeline: run.Pipeline | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of one pickled Chunk, or of the error that ended the reading."""
        import ray

        chunk = pickle.loads(block.column(PAYLOAD)[0].as_py())
        try:
            if isinstance(chunk, Exception):
                raise chunk
            n_attempts = ray.get(self._attempts.begin.remote(chunk.name))
            if n_attempts > ATTEMPTS:
                raise chunk_given_up(chunk, n_attempts - 1)
            if self._pipeline is None:
                self._pipeline = _same_pipeline(self._settings, self._provenance)
            return _block(tag_chunk(self._pipeline, chunk))
        except Exception as error:  # noqa: BLE001  # raised again in the process that the user started
            return _block(error)


class Attempts:
    """An actor that counts how often each chunk was begun; it outlives the actors that die of one."""

    def __init__(self) -> None:
        self._n_begun: dict[str, int] = {}

    def begin(self, name: str) -> int:
        """The how-manieth attempt this is, from 1."""
        self._n_begun[name] = self._n_begun.get(name, 0) + 1
        return self._n_begun[name]


@contextmanager
def _without_standard_error() -> Iterator[None]:
    """Ray's C++ greets there, and nothing turns that off; what goes wrong is raised."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _load_once(settings: Settings, provenance: Mapping[str, str]) -> bytes:
    """None, or why the stages cannot be loaded; pickled."""
    try:
        _same_pipeline(settings, provenance)
    except Exception as error:  # noqa: BLE001  # raised again in the process that the user started
        return _pickled(error)
    return _pickled(None)


def _same_pipeline(settings: Settings, provenance: Mapping[str, str]) -> run.Pipeline:
    if fingerprint(provenance_parts(settings)) != provenance["fingerprint"]:
        raise EngineError(f"node {socket.gethostname()}: radtag, task file, weights or model are not those of the run")
    return run.build_pipeline(settings, provenance)


def _chunk_source(chunks: Any, *, n_ahead: int) -> Any:
    """A Ray datasource of one read task on this node, one chunk a block, at most `n_ahead` before the parts that stand."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class ChunkSource(Datasource):
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, per_task_row_limit: Any = None, data_context: Any = None) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda: _chunk_blocks(chunks, n_ahead), unknown)]

        @property
        def supports_distributed_reads(self) -> bool:
            return False

    source: Any = ChunkSource  # Ray's base class is not typed
    return source()


def _chunk_blocks(chunks: Any, n_ahead: int) -> Iterator[pa.Table]:
    import ray

    missing: MissingChunks = ray.get(chunks)
    ahead: set[str] = set()
    try:
        for chunk in missing:
            while len(ahead) >= n_ahead:
                ahead = {name for name in ahead if not is_finished_part(missing.folder, name)}
                if len(ahead) >= n_ahead:
                    time.sleep(LOOK_EVERY_S)
            ahead.add(chunk.name)
            yield _block(chunk)
    except Exception as error:  # noqa: BLE001  # raised again in the process that the user started
        yield _block(error)


def _block(content: object) -> pa.Table:
    import pyarrow as pa

    return pa.table({PAYLOAD: pa.array([_pickled(content)], pa.large_binary())})


def _pickled(content: object) -> bytes:
    try:
        data = pickle.dumps(content)
        pickle.loads(data)  # an exception with arguments of its own can be written and not read
    except Exception:
        if not isinstance(content, Exception):
            raise
        return pickle.dumps(EngineError(f"ray: {type(content).__name__} in an actor"))
    return data


def _imported_ray(*, own_cluster: bool) -> Any:
    for name, value in (QUIET | (OWN_CLUSTER if own_cluster else {})).items():
        os.environ.setdefault(name, value)
    if own_cluster and "RAY_AUTH_MODE" not in os.environ:  # its ports are open to the network: only this run may use them
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise SettingsError(f"--engine ray needs the extra 'ray' (pip install 'radtag[ray]'): {error.name} is missing") from None
    return ray

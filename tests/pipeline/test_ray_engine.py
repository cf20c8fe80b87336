"""The Ray engine: the parts of the local one byte for byte, whatever dies; nothing leaves the machine. Real Ray, real rules."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from configs.contracts import EntityFlags, Report
from pipeline.archive import read_run
from pipeline.chunks import Chunk
from pipeline.engine import EngineError, tag_chunk
from pipeline.run import Pipeline
from pipeline.settings import SettingsError, settings
from pipeline.source_files import SourceError
from pipeline.verify import verify_run

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
from pipeline import ray_engine  # after the check above

ROOT = Path(__file__).parents[2]
SENTENCES = (
    "Nodule in the RUL, 8 mm.",
    "No effusion.",
    "Atelectasis in the left lower lobe.",
    "우하엽에 결절 있음.",
    "Normal chest CT.",
)
N_REPORTS = 240
TIMEOUT_S = 300  # a machine that is busy with other work


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every seventh text stands often."""
    path = tmp_path_factory.mktemp("ray") / "reports.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(N_REPORTS):
            text = " ".join(SENTENCES[(n * step) % 5] for step in (1, 2, 3)) + (f" Accession {n}." if n % 7 else "")
            file.write(json.dumps({"report_id": f"r{n}", "text": text, "patient_id": f"p{n % 9}"}, ensure_ascii=False) + "\n")
    return path


@pytest.fixture
def start(source: Path) -> Iterator[Callable[..., psutil.Popen]]:
    started: list[psutil.Popen] = []

    def begin(out: Path, *options: str) -> psutil.Popen:
        command = [sys.executable, "-m", "pipeline.cli", "tag", str(source), "--task", "chest_ct", "--system", "rules"]
        command += ["--out", str(out), "--chunk-reports", "8", "--threads", "1", *options]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: psutil.Popen) -> str:
    """What it said on standard error."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors + output
    return str(errors)


def wait_for_parts(out: Path, n_parts: int, process: psutil.Popen) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(list((out / "parts").glob("*.sha256"))) < n_parts:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no {n_parts} parts in {TIMEOUT_S} s"
        time.sleep(0.02)


def far_connections(processes: list[psutil.Process]) -> list[str]:
    here = {address.address.split("%")[0] for some in psutil.net_if_addrs().values() for address in some}
    far = []
    for process in processes:
        try:
            found = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        far += [f"{process.name()} {c.raddr.ip}" for c in found if c.raddr and c.raddr.ip.removeprefix("::ffff:") not in here]
    return far


@pytest.mark.slow
def test_an_actor_and_then_the_run_are_killed_and_the_bytes_are_those_of_the_local_engine(
    start: Callable[..., psutil.Popen], tmp_path: Path, parts_of
) -> None:
    moments = random.Random(20261121)
    out = tmp_path / "out"
    on_ray = start(out, "--engine", "ray", "--workers", "2")
    wait_for_parts(out, moments.randint(2, 8), on_ray)
    family = on_ray.children(recursive=True)
    assert far_connections([on_ray, *family]) == []
    actors = [process for process in family if "ray::MapWorker" in process.name() + " ".join(process.cmdline())]
    agents = [process for process in family if process.name().endswith("Agent")]
    assert len(actors) == 2
    moments.choice(actors).kill()
    wait_for_parts(out, len(list((out / "parts").glob("*.sha256"))) + 6, on_ray)
    on_ray.send_signal(signal.SIGKILL)
    on_ray.wait()
    workers = [process for process in family if process not in agents]  # these two try to reach their dead node for a minute
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    found = verify_run(out)
    assert (found.problems, found.n_unfinished > 0) == ([], True)
    errors = finish(start(out, "--resume"))  # by the local engine
    assert "in whole parts already" in errors
    finish(start(tmp_path / "local"))
    assert parts_of(out) == parts_of(tmp_path / "local")


@pytest.mark.slow
def test_a_run_on_ray_that_loses_an_actor_goes_on_to_its_end(start, tmp_path: Path, parts_of) -> None:
    out = tmp_path / "out"
    on_ray = start(out, "--engine", "ray", "--workers", "1")
    wait_for_parts(out, 3, on_ray)
    actors = [p for p in on_ray.children(recursive=True) if "ray::MapWorker" in p.name() + " ".join(p.cmdline())]
    actors[0].kill()
    errors = finish(on_ray)
    assert [line for line in errors.splitlines() if not line.startswith("radtag: ")] == []
    finish(start(tmp_path / "local", "--workers", "2"))
    assert parts_of(out) == parts_of(tmp_path / "local")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["finished"], summary["counts"]["failed"]) == (True, 0)
    assert not read_run(out).settings.get("engine")  # where it ran is no part of what it is


@pytest.fixture
def tagger(monkeypatch: pytest.MonkeyPatch, task, flagger, mapper) -> Callable[[], ray_engine.ChunkTagger]:
    """An actor's object in this process, with stages that can be seen through."""
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray_engine, "provenance_parts", lambda filled: {"system": filled.system})
    monkeypatch.setattr(ray_engine.run, "build_pipeline", lambda filled, provenance: Pipeline(task, flagger, mapper, provenance))
    attempts = ray_engine.Attempts()
    handle = SimpleNamespace(begin=SimpleNamespace(remote=attempts.begin))

    def make(fingerprint: str = ray_engine.fingerprint({"system": "rules"})) -> ray_engine.ChunkTagger:
        return ray_engine.ChunkTagger(settings(task="tiny", system="rules"), {"fingerprint": fingerprint}, handle)

    return make


def answer(tagger: ray_engine.ChunkTagger, content: object) -> object:
    return pickle.loads(tagger(ray_engine._block(content)).column(ray_engine.PAYLOAD)[0].as_py())


CHUNK = Chunk(3, (Report("a", "nodule right", "p1"), Report("b", "CANNOT be read")))


def test_an_actor_gives_the_part_that_the_local_engine_gives(tagger, task, flagger, mapper) -> None:
    done = answer(tagger(), CHUNK)
    provenance = {"fingerprint": ray_engine.fingerprint({"system": "rules"})}
    assert done.records == tag_chunk(Pipeline(task, flagger, mapper, provenance), CHUNK).records


def test_an_actor_sends_the_tokens_that_its_stages_counted(tagger, flagger, monkeypatch: pytest.MonkeyPatch) -> None:
    def flag(texts: Sequence[str]) -> list[EntityFlags]:
        flagger.token_counts["stage1_read"] += 7 * len(texts)
        return plain(texts)

    plain = flagger.flag
    monkeypatch.setattr(flagger, "token_counts", {"stage1_read": 0}, raising=False)
    monkeypatch.setattr(flagger, "flag", flag)
    actor = tagger()
    assert [answer(actor, CHUNK).tokens for _ in range(2)] == [{"stage1_read": 14}] * 2  # of each chunk, not since the beginning


def test_a_node_with_other_files_than_the_run_tags_nothing(tagger) -> None:
    found = answer(tagger("of another model"), CHUNK)
    assert isinstance(found, EngineError)
    assert "are not those of the run" in str(found)


def test_a_chunk_that_ends_its_actor_again_and_again_is_named(tagger) -> None:
    for _ in range(ray_engine.ATTEMPTS):
        assert not isinstance(answer(tagger(), CHUNK), Exception)
    found = answer(tagger(), CHUNK)
    assert isinstance(found, EngineError)
    assert "part-000003-" in str(found)
    assert "(reports 'a' to 'b'): the process that tagged it ended 4 times" in str(found)


def test_an_error_of_the_reading_arrives_as_itself(tagger) -> None:
    found = answer(tagger(), SourceError("input changed"))
    assert (type(found), str(found)) == (SourceError, "input changed")


def test_an_exception_that_cannot_be_sent_keeps_its_name_and_not_its_text() -> None:
    class OddError(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(one)

    assert str(pickle.loads(ray_engine._pickled(OddError("nodule", "x")))) == "ray: OddError in an actor"


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"--engine ray needs the extra 'ray' \(pip install 'radtag\[ray\]'\)"):
        ray_engine._imported_ray(own_cluster=False)

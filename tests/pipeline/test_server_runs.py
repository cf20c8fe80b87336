"""`radtag tag --server`: a model in another process, well or ill."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.contracts import ChatPrompt
from pipeline.settings import SettingsError, fingerprint, provenance_parts, settings
from stage2_relations.model_file import default_model
from stage2_relations.openai_http import OpenAIHttpModel
from stage2_relations.token_grammar import TokenGrammar

REPORTS = [
    {"report_id": "a", "text": "A nodule in the right lung and on the left side."},
    {"report_id": "b", "text": "Nothing to see."},
    {"report_id": "c", "text": "Nodules on the left, mass right of the midline."},
    {"report_id": "d", "text": "mass on the left, secret Hong Gildong"},
]


def answer_of(request: dict) -> str:
    """The last answer in the alphabet that the request's grammar allows."""
    place = TokenGrammar.parse(request["grammar"], lambda literal: tuple(map(ord, literal)))
    text = ""
    while not place.may_end:
        text += chr(place.next_tokens()[-1])
        place.accept(ord(text[-1]))
    return text


@pytest.fixture
def tag(radtag, task_file: Path, write_jsonl, tmp_path: Path):
    def run(url: str, *options: object, out: str = "out", rows: list | None = None):
        arguments = ("--task", task_file, "--out", tmp_path / out, "--system", "llm", "--server", url, "--server-model", "m")
        return radtag("tag", write_jsonl(rows or REPORTS), *arguments, *options)

    return run


def test_a_server_reads_the_reports_and_its_address_is_no_part_of_the_run(
    tag, chat_server, chat_answers, records_of, tmp_path
) -> None:
    server = chat_server(lambda request: (200, chat_answers(answer_of(request))))
    result = tag(server.url)
    assert result.exit_code == 0, result.output
    records = records_of(tmp_path / "out")
    assert [record["status"] for record in records] == ["ok", "no_findings", "ok", "no_findings"]
    assert all(relation["value_span"] for record in records for relation in record["relations"] or ())
    assert server.requests and {request["model"] for request in server.requests} == {"m"}
    run = (tmp_path / "out" / "run.json").read_text()
    assert server.url not in run and server.url.removeprefix("http://") not in run
    assert json.loads(run)["provenance"]["server_model"] == "m"
    assert "model" not in json.loads(run)["provenance"]


def test_several_requests_at_once_write_the_same_bytes_in_the_same_order(
    tag, chat_server, chat_answers, parts_of, tmp_path
) -> None:
    rows = [{"report_id": f"r{n}", "text": f"{REPORTS[n % 4]['text']} #{n}"} for n in range(40)]
    now: list[int] = []
    most = 0

    def say(request: dict) -> tuple[int, object]:
        nonlocal most
        now.append(1)
        most = max(most, len(now))
        time.sleep(0.01 * (len(request["messages"][0]["content"]) % 3))
        now.pop()
        if "#12" in request["messages"][0]["content"]:
            return 400, {}
        return 200, chat_answers(answer_of(request))

    server = chat_server(say)
    assert tag(server.url, rows=rows, out="one").exit_code == 1
    assert most == 1
    assert tag(server.url, "--http-concurrency", 6, rows=rows, out="six").exit_code == 1
    assert 2 <= most <= 6
    assert parts_of(tmp_path / "one") == parts_of(tmp_path / "six")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda answers: (400, {"error": {"message": "Hong Gildong"}}), id="refused request"),
        pytest.param(lambda answers: (200, b"Hong Gildong"), id="garbage"),
        pytest.param(lambda answers: (200, answers("I would say left, Hong Gildong.")), id="another answer"),
        pytest.param(lambda answers: (200, answers("mass: le", finish_reason="length")), id="cut answer"),
        pytest.param(lambda answers: (200, answers(None, refusal="I cannot read of Hong Gildong")), id="refusal"),
        pytest.param(lambda answers: None, id="dead server"),
    ],
)
def test_a_fault_fails_its_row_and_the_run_goes_on_with_exit_1(
    tag, chat_server, chat_answers, records_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable
) -> None:
    monkeypatch.setattr("stage2_relations.openai_http.FIRST_PAUSE_S", 0.01)

    def say(request: dict) -> object:
        if "Hong Gildong" in request["messages"][-1]["content"]:
            return fault(chat_answers)
        return 200, chat_answers(answer_of(request))

    result = tag(chat_server(say).url)
    assert result.exit_code == 1, result.output
    records = records_of(tmp_path / "out")
    assert [record["status"] for record in records] == ["ok", "no_findings", "ok", "failed"]
    assert records[3]["entities"] is None and records[3]["problem"].startswith("step 'sides': ")
    assert "Gildong" not in result.output + json.dumps(records)


def test_settings_of_a_server_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    for values, message in (
        ({"server": "http://h"}, "--server needs --server-model"),
        ({"server": "h:1", "server_model": "m"}, "--server: server address is not understood"),
        ({"server": "http://h", "server_model": "m", "model": tmp_path}, "--model goes with a model in this process"),
        ({"server": "http://h", "server_model": "m", "adapter": tmp_path}, "--adapter goes with"),
        ({"server": "http://h", "server_model": "m", "gpu_layers": 3}, "--gpu-layers goes with"),
        ({"server": "http://h", "server_model": "m", "read": "score"}, "--read score needs a model in this process"),
        ({"server": "http://h", "server_model": "m", "system": "rules"}, "system 'rules' uses no server"),
        ({"http_concurrency": 2}, "--http-concurrency goes with --server"),
        ({"server_model": "m"}, "--server-model goes with --server"),
        ({"server_plain": True}, "--server-plain goes with --server"),
    ):
        with pytest.raises(SettingsError, match=message):
            settings(task="chest_ct", **{"system": "llm", **values})


def test_the_model_of_a_server_is_part_of_the_fingerprint_and_its_address_is_not() -> None:
    def of(**values: object) -> str:
        base = {"task": "chest_ct", "system": "llm", "server": "http://h", "server_model": "m"}
        return fingerprint(provenance_parts(settings(**base | values)))

    assert of() == of(server="http://elsewhere:1", http_concurrency=8, server_timeout_s=5.0)
    assert len({of(), of(server_model="n"), of(server_plain=True), of(grounding=False)}) == 4


@pytest.fixture(scope="module")
def llama_server() -> Iterator[str]:
    """llama.cpp's server of the installed llama-cpp-python, with the default model, on loopback."""
    for package in ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"):
        pytest.importorskip(package, reason="llama_cpp.server needs it; it stands in the extra 'dev'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048", "--n_threads", "1", "--n_threads_batch", "1"]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(default_model()), *options, "--verbose", "False"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/v1/models", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    pytest.fail(f"llama_cpp.server ended with {process.returncode}")
                time.sleep(0.1)
        else:
            pytest.fail("llama_cpp.server does not come up within a minute")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.mark.llm
def test_llama_cpp_server_keeps_to_the_grammar(llama_server: str) -> None:
    model = OpenAIHttpModel(llama_server, "smollm2")
    prompt = ChatPrompt("", "Where is the nodule? ", "8 mm nodule in RUL.")
    grammar = 'root ::= "nodule:" place\nplace ::= " RUL" | " LUL" | " not stated"\n'
    completion = model.complete(prompt, grammar=grammar, max_tokens=40)
    assert completion.finished
    assert completion.text.removeprefix("nodule:") in (" RUL", " LUL", " not stated")
    assert completion.token_logprobs is None or max(completion.token_logprobs) <= 0.0
    free = model.complete(prompt, grammar=None, max_tokens=2)
    assert not free.finished
    assert free.token_logprobs is not None and len(free.token_logprobs) == 2


@pytest.mark.llm
def test_llama_cpp_server_tags_a_report(tag, llama_server: str, records_of, tmp_path: Path) -> None:
    result = tag(llama_server, rows=REPORTS[:1])
    assert result.exit_code == 0, result.output
    [record] = records_of(tmp_path / "out")
    assert record["problem"] is None
    for relation in record["relations"]:
        assert relation["value_span"] is not None  # nothing that the text does not say

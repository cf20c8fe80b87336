"""langextract gets the task's own examples, and what it cannot read is failed and not empty (needs the extra `bench`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from configs.contracts import Report
from configs.schema import load_task
from eval.bench_langextract import ANSWER_TOKENS, LangExtract, langextract_missing

READABLE = json.dumps({"extractions": [{"nodule": "Nodule", "nodule_attributes": {"values": "RUL, somewhere"}}]})

pytestmark = pytest.mark.skipif(langextract_missing() is not None, reason=f"extra 'bench': {langextract_missing()}")


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]], list[str]]]:
    """A server of chat completions on loopback: its address, the requests it got, the answers it gives in turn."""
    requests: list[dict[str, Any]] = []
    answers: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": answers.pop(0)}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "local"}
            body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing is printed."""

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", requests, answers
    finally:
        http.shutdown()
        http.server_close()


def test_langextract_is_asked_with_the_task_s_examples_and_read_by_its_labels(
    server: tuple[str, list[dict[str, Any]], list[str]],
) -> None:
    address, requests, answers = server
    answers += [READABLE, "no JSON at all"]
    task = load_task("chest_ct")
    extractor = LangExtract(task, address)
    first, second = extractor.read([Report("a", "Nodule in RUL."), Report("b", "Mass in LLL.")])
    assert first is not None and first.values == {"nodule": frozenset({"rul"})}
    assert second is None
    assert extractor.n_unreadable == 1
    assert len(requests) == 2
    assert requests[0]["max_tokens"] == ANSWER_TOKENS
    assert requests[0]["response_format"] == {"type": "json_object"}
    prompt = requests[0]["messages"][-1]["content"]
    assert task.steps[0].prompt.instruction in prompt
    assert "Nodule in RUL." in prompt
    assert prompt.count('"values"') >= 4  # one for each lesion of the worked examples

"""A server on loopback that says what a test wants, in OpenAI's wire format or not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Say = tuple[int, object] | None


def chat_answer(text: str | None, *, finish_reason: str = "stop", **changes: object) -> dict[str, object]:
    """A chat completion. `changes` go into the message."""
    message = {"role": "assistant", "content": text, **changes}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


@dataclass
class ChatServer:
    """`say` turns a request's JSON into status and answer (JSON, or bytes as they are), or None: the connection is cut."""

    say: Callable[[dict[str, Any]], Say]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def chat_server() -> Iterator[Callable[[Callable[[dict[str, Any]], Say]], ChatServer]]:
    """Starts servers, and ends them with the test."""
    running: list[ThreadingHTTPServer] = []

    def start(say: Callable[[dict[str, Any]], Say]) -> ChatServer:
        state = ChatServer(say)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                state.paths.append(self.path)
                state.headers.append({name.lower(): value for name, value in self.headers.items()})
                state.requests.append(json.loads(body))
                said = state.say(state.requests[-1])
                if said is None:
                    self.close_connection = True
                    return
                status, answer = said
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        return state

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def chat_answers() -> Callable[..., dict[str, object]]:
    """`chat_answer`, for tests that cannot import it."""
    return chat_answer

"""A server that answers well, badly or not at all: every fault is a LanguageModelError without a word of the report."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest

from configs.contracts import ChatPrompt
from stage2_relations.language_model import AlignedCompletion, LanguageModelError
from stage2_relations.openai_http import KEY_VARIABLE, OpenAIHttpModel, ServerAddressError, chat_url

SECRET = "Hong Gildong"
PROMPT = ChatPrompt("Be brief.", "Read the report. ", f"{SECRET}: nodule in RUL")
GRAMMAR = 'root ::= "nodule:" place\nplace ::= " RUL" | " LUL"\n'


def ask(server, *, grammar: str | None = GRAMMAR, **options: object):
    pauses: list[float] = []
    model = OpenAIHttpModel(server.url, "a-model", pause=pauses.append, **options)
    try:
        return model.complete(PROMPT, grammar=grammar, max_tokens=20), pauses
    finally:
        model.close()


def problem(server, **options: object) -> str:
    with pytest.raises(LanguageModelError) as caught:
        ask(server, **options)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_prompt_is_sent_in_openai_form_with_the_grammar_as_each_server_knows_it(chat_server, chat_answers) -> None:
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL")))
    completion, _ = ask(server)
    assert (completion.text, completion.finished, completion.token_logprobs) == ("nodule: RUL", True, None)
    [request] = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert request["model"] == "a-model"
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"Read the report. {SECRET}: nodule in RUL"},
    ]
    assert (request["temperature"], request["max_tokens"], request["stream"]) == (0, 20, False)
    assert request["grammar"] == request["structured_outputs"]["grammar"] == request["guided_grammar"] == GRAMMAR
    assert "authorization" not in server.headers[0]


def test_a_plain_request_holds_standard_fields_alone(chat_server, chat_answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k3y")
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL")))
    ask(server, plain=True)
    assert server.requests[0].keys() == {"model", "messages", "max_tokens", "temperature", "seed", "stream"}
    assert server.headers[0]["authorization"] == "Bearer k3y"


QUOTING = {"error": {"type": f"quotes {SECRET}", "message": SECRET}}


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": {"type": "exceed_context_size_error", "message": SECRET}}, r"status 400 \(exceed_context_size_error\)"),
        (401, QUOTING, "status 401$"),
        (404, b"<html>", "status 404"),
        (500, QUOTING, "status 500"),
        (302, b"", "status 302"),
        (200, f"no JSON: {SECRET}".encode(), "no chat completion"),
        (200, [SECRET], "no chat completion"),
        (200, {"choices": []}, "no chat completion"),
        (200, {"choices": [{"message": {"content": [SECRET]}}]}, "no chat completion"),
        (200, b"", "no chat completion"),
        (200, "null", "no chat completion"),
    ],
)
def test_an_answer_that_is_none_is_an_error_and_not_tried_again(chat_server, status: int, answer: object, message: str) -> None:
    server = chat_server(lambda request: (status, answer))
    assert re.search(message, problem(server))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"text": None}, "empty"),
        ({"text": ""}, "empty"),
        ({"text": None, "refusal": f"I cannot read of {SECRET}"}, "refused"),
        ({"text": "nodule", "finish_reason": "content_filter"}, "'content_filter'"),
        ({"text": "nodule", "finish_reason": f"because of {SECRET}"}, "no known reason"),
        ({"text": None, "finish_reason": "tool_calls"}, "'tool_calls'"),
    ],
)
def test_a_refusal_or_an_empty_answer_is_an_error(chat_server, chat_answers, answer: dict[str, str], message: str) -> None:
    server = chat_server(lambda request: (200, chat_answers(**answer)))
    assert message in problem(server)


def test_an_answer_at_the_token_limit_is_not_finished(chat_server, chat_answers) -> None:
    completion, _ = ask(chat_server(lambda request: (200, chat_answers("nodule:", finish_reason="length"))))
    assert not completion.finished


def test_a_cut_connection_is_tried_again_after_growing_pauses(chat_server, chat_answers) -> None:
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL")) if len(server.requests) > 3 else None)
    completion, pauses = ask(server, retries=3)
    assert completion.text == "nodule: RUL"
    assert pauses == [0.5, 1.0, 2.0]


def test_an_answer_cut_in_the_middle_is_a_failed_connection(chat_server, chat_answers) -> None:
    whole = json.dumps(chat_answers("nodule: RUL")).encode()

    class Cut(bytes):
        def __len__(self) -> int:
            return super().__len__() + 5  # what the header promises

    server = chat_server(lambda request: (200, Cut(whole)))
    server_closes = problem(server, retries=1, timeout_s=0.5)
    assert "does not answer" in server_closes and "in 2 tries" in server_closes
    assert len(server.requests) == 2


def test_a_silent_server_runs_out_of_time(chat_server) -> None:
    server = chat_server(lambda request: time.sleep(1.0))
    begin = time.monotonic()
    assert "ReadTimeout in 1 tries" in problem(server, retries=0, timeout_s=0.2)
    assert time.monotonic() - begin < 0.9


def test_a_dead_server_is_tried_once_a_prompt_until_it_lives_again(chat_server, chat_answers) -> None:
    alive = False
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL")) if alive else None)
    pauses: list[float] = []
    model = OpenAIHttpModel(server.url, "m", retries=2, pause=pauses.append)
    for n_requests in (3, 4, 5):
        with pytest.raises(LanguageModelError):
            model.complete(PROMPT, grammar=None, max_tokens=5)
        assert (len(server.requests), len(pauses)) == (n_requests, 2)
    alive = True
    assert model.complete(PROMPT, grammar=None, max_tokens=5).text == "nodule: RUL"
    alive = False
    with pytest.raises(LanguageModelError, match="in 3 tries"):
        model.complete(PROMPT, grammar=None, max_tokens=5)


def test_a_closed_port_is_an_error_and_no_connection_is_opened_before_the_first_prompt() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    model = OpenAIHttpModel(url, "m", retries=1, pause=lambda seconds: None)
    with pytest.raises(LanguageModelError, match="ConnectError in 2 tries"):
        model.complete(PROMPT, grammar=None, max_tokens=5)


def test_proxies_of_the_environment_get_nothing_to_see(chat_server, chat_answers, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = chat_server(lambda request: (200, chat_answers("from the proxy")))
    server = chat_server(lambda request: (200, chat_answers("nodule: RUL")))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert ask(server)[0].text == "nodule: RUL"
    assert proxy.requests == []


def test_probabilities_are_taken_among_what_the_grammar_allows(chat_server, chat_answers) -> None:
    def top(text: str, **logprobs: float) -> dict[str, object]:
        likeliest = [{"token": name.replace("_", " "), "logprob": value} for name, value in logprobs.items()]
        return {"token": text, "logprob": logprobs[text.replace(" ", "_")], "top_logprobs": likeliest}

    answer = chat_answers("nodule: RUL")
    answer["choices"][0]["logprobs"] = {
        "content": [
            {"token": "nodule:", "logprob": -9.0, "top_logprobs": []},
            top(" RUL", _RUL=-2.0, _LUL=-2.0, the=-20.0),
            {"token": "<|eot_id|>", "logprob": -0.1, "top_logprobs": []},
        ]
    }
    completion, _ = ask(chat_server(lambda request: (200, answer)))
    assert isinstance(completion, AlignedCompletion)
    assert completion.token_logprobs == (0.0, pytest.approx(-0.693147, abs=1e-6))
    assert completion.token_ends_chars == (7, 11)
    without_grammar, _ = ask(chat_server(lambda request: (200, answer)), grammar=None)
    assert without_grammar.token_logprobs == (-9.0, -2.0)


def test_the_beginning_of_an_answer_cannot_be_given() -> None:
    with pytest.raises(LanguageModelError, match="beginning"):
        OpenAIHttpModel("http://127.0.0.1:9", "m").complete(ChatPrompt("", "", "x", answer_prefix="a"), grammar=None, max_tokens=5)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://llm.hospital.example/vllm/v1", "https://llm.hospital.example/vllm/v1/chat/completions"),
        ("http://[::1]:8080", "http://[::1]:8080/v1/chat/completions"),
    ],
)
def test_addresses_with_and_without_v1_lead_to_the_same_place(given: str, url: str) -> None:
    assert chat_url(given) == url


@pytest.mark.parametrize(
    "given",
    ["", "localhost:8000", "ftp://host", "http://", "http://host:99999", "http://host?x=1", "http://u:pw@host", "http://[::1"],
)
def test_what_is_no_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(ServerAddressError) as caught:
        chat_url(given)
    assert "pw" not in str(caught.value)

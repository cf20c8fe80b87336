"""A model behind a server of OpenAI's chat completions: vLLM, llama-server, others. The one module that opens a connection."""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError

from configs.contracts import ChatPrompt, Completion
from stage2_relations.language_model import AlignedCompletion, LanguageModelError
from stage2_relations.offered_odds import ServedToken, offered_logprobs

__all__ = ["KEY_VARIABLE", "OpenAIHttpModel", "ServerAddressError", "chat_url"]

KEY_VARIABLE = "RADTAG_SERVER_KEY"
DEFAULT_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
DEFAULT_RETRIES = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
TOP_LOGPROBS = 20  # the most that OpenAI's interface and vLLM's default allow
LARGEST_ANSWER_BYTES = 16 * 2**20
_ERROR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,60}")


class ServerAddressError(Exception):
    """An address that is none of a server: what was found, what is expected."""


class _TopToken(BaseModel):
    token: str
    logprob: float


class _Token(_TopToken):
    top_logprobs: list[_TopToken] = Field(default_factory=list)


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Answer(BaseModel):
    choices: list[_Choice] = Field(min_length=1, max_length=1)


class OpenAIHttpModel:
    """A LanguageModel behind a server; may be used by several threads at once.

    Only connections that fail, break off or run out of time are tried again, each time after twice the pause. A server that failed
    a whole round is tried once a prompt, without pauses, until it answers again. An answer of any status is final. Redirects are
    not followed and proxies of the environment not used: a prompt goes to the named host or nowhere.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
        connections: int = 1,
        plain: bool = False,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Opens no connection yet.

        Args:
            base_url: `http(s)://host:port`, with or without `/v1`. A key is taken from $RADTAG_SERVER_KEY.
            model: The name that the server knows it by.
            timeout_s: From a prompt to its whole answer, connecting apart.
            retries: Further tries after a failed connection.
            connections: At most so many at a time.
            plain: Send standard fields alone, no grammar and no wish for log-probabilities, for servers that refuse others.
            pause: Waits so many seconds.

        Raises:
            ServerAddressError: `base_url` is no such address.
        """
        self._url = chat_url(base_url)
        self.model = model
        self._timeout_s, self._retries, self._plain, self._pause = timeout_s, retries, plain, pause
        self._is_dead = False
        key = os.environ.get(KEY_VARIABLE)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            verify=ssl.create_default_context() if self._url.startswith("https:") else False,  # the system's certificates
            trust_env=False,
            follow_redirects=False,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        """Greedy completion; see configs.contracts.LanguageModel. Log-probabilities only where the server's can be led back.

        Raises:
            LanguageModelError: no connection, a status other than 200, or something else than an answer. It never holds what was
                sent or received.
        """
        if prompt.answer_prefix:
            raise LanguageModelError("a chat server cannot be given the beginning of its answer")
        response = self._posted(self._request(prompt, grammar, max_tokens))
        if response.status_code != httpx.codes.OK:
            raise LanguageModelError(f"server answers with status {response.status_code}{_error_name(response)}")
        try:
            choice = _Answer.model_validate_json(response.content).choices[0]
        except ValidationError as error:
            raise LanguageModelError(f"server's answer is no chat completion ({error.errors()[0]['type']})") from None
        text = choice.message.content
        if choice.message.refusal:
            raise LanguageModelError("server's model refused to answer")
        if choice.finish_reason not in ("stop", "length"):
            raise LanguageModelError(f"server's model ended with {_known(choice.finish_reason)}; 'stop' is expected")
        if not text:
            raise LanguageModelError("server's answer is empty")
        return _completion(text, choice.logprobs, grammar, finished=choice.finish_reason == "stop")

    def _request(self, prompt: ChatPrompt, grammar: str | None, max_tokens: int) -> dict[str, Any]:
        messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
        messages.append({"role": "user", "content": prompt.prefix + prompt.body})
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "seed": 0,
            "stream": False,
        }
        if self._plain:
            return request
        request |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if grammar is not None:
            # llama.cpp; vLLM from 0.12; vLLM before that. Each passes over the fields of the others.
            request |= {"grammar": grammar, "structured_outputs": {"grammar": grammar}, "guided_grammar": grammar}
        return request

    def _posted(self, request: Mapping[str, Any]) -> httpx.Response:
        tries = 1 if self._is_dead else 1 + self._retries
        for number in range(1, tries + 1):
            try:
                response = self._response(request)
            except httpx.TransportError as error:
                if number == tries:
                    self._is_dead = True
                    raise LanguageModelError(f"server does not answer: {type(error).__name__} in {tries} tries") from None
                self._pause(min(FIRST_PAUSE_S * 2 ** (number - 1), LONGEST_PAUSE_S))
            except httpx.HTTPError as error:
                raise LanguageModelError(f"server's answer cannot be read: {type(error).__name__}") from None
            else:
                self._is_dead = False
                return response
        raise LanguageModelError(f"server was tried {tries} times")

    def _response(self, request: Mapping[str, Any]) -> httpx.Response:
        begin = time.monotonic()
        with self._client.stream("POST", self._url, json=request) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if time.monotonic() - begin > self._timeout_s:  # httpx's own limit is the silence between two parts
                    raise httpx.ReadTimeout("an answer drop by drop")
                if len(content) > LARGEST_ANSWER_BYTES:
                    raise LanguageModelError(f"server's answer exceeds {LARGEST_ANSWER_BYTES} bytes")
        return httpx.Response(response.status_code, content=bytes(content))


def chat_url(base_url: str) -> str:
    """Where chat completions are asked for. Raises ServerAddressError for anything but `http(s)://host[:port][/path]`."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ServerAddressError("server address is not understood; expected http://HOST:PORT or https://HOST/v1")
    if parts.username is not None or parts.password is not None:
        raise ServerAddressError(f"server address holds a name or password; a key goes into the environment as {KEY_VARIABLE}")
    path = parts.path.rstrip("/")
    url = f"{parts.scheme}://{parts.netloc}{path}{'' if path.endswith('/v1') else '/v1'}/chat/completions"
    try:
        return str(httpx.URL(url))
    except httpx.InvalidURL:
        raise ServerAddressError("server address is not understood; expected http://HOST:PORT or https://HOST/v1") from None


def _completion(text: str, logprobs: _Logprobs | None, grammar: str | None, *, finished: bool) -> Completion:
    given = [] if logprobs is None or logprobs.content is None else logprobs.content
    tokens = [
        ServedToken(one.token, {one.token: one.logprob, **{top.token: top.logprob for top in one.top_logprobs}}) for one in given
    ]
    ends: list[int] = []
    for token in tokens:
        ends.append((ends[-1] if ends else 0) + len(token.text))
        if "".join(t.text for t in tokens[: len(ends)]) == text:
            break
    tokens = tokens[: len(ends)]  # an end token may follow
    if not tokens or "".join(token.text for token in tokens) != text:
        return Completion(text, None, finished)
    chosen = tuple(min(one.logprob, 0.0) for one in given[: len(tokens)])
    found = chosen if grammar is None else offered_logprobs(tokens, grammar)
    return Completion(text, None, finished) if found is None else AlignedCompletion(text, found, finished, tuple(ends))


def _error_name(response: httpx.Response) -> str:
    """The kind of error in OpenAI's form, if it is a bare name; never the message, which may quote the prompt."""
    try:
        error = response.json()["error"]
        name = error.get("type") or error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f" ({name})" if isinstance(name, str) and _ERROR_NAME.fullmatch(name) else ""


def _known(reason: str | None) -> str:
    return f"'{reason}'" if reason is not None and _ERROR_NAME.fullmatch(reason) else "no known reason"

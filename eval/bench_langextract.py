"""langextract on the same model file, behind llama.cpp's server on loopback, as a thing to compare with (extra `bench`).

It gets what radtag gets: the instruction of the task's step and the two worked examples. Values are an attribute of an extraction.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.contracts import Report
from configs.mentions import entity_mentions
from configs.schema import Step, Task
from eval.gold import Labels

SERVER_PACKAGES = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
START_S = 120.0
ANSWER_TOKENS = 256  # without a limit an untuned small model fills its context with one answer
VALUES_ATTRIBUTE = "values"


class ServerStartError(Exception):
    """llama.cpp's server that does not come up."""


def langextract_missing() -> str | None:
    """What must be installed before langextract can be measured; None when all is there."""
    packages = ("langextract", "openai", *SERVER_PACKAGES)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (pip install 'radtag[bench]')" if missing else None


def langextract_version() -> str:
    """Of the installed package."""
    return metadata.version("langextract")


@contextmanager
def llama_server(model: Path, *, context_tokens: int) -> Iterator[tuple[str, int]]:
    """llama.cpp's server for the file, one thread, on a free loopback port: its address and process id.

    Raises:
        ServerStartError: it ends by itself or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(context_tokens), "--n_threads", "1"]
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(model),
        *options,
        "--n_threads_batch",
        "1",
        "--verbose",
        "0",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process)
        yield f"{url}/v1", process.pid
    finally:
        process.terminate()
        process.wait(timeout=30)


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < START_S:
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                raise ServerStartError(f"llama.cpp's server ended with {process.returncode}") from None
            time.sleep(0.1)
    raise ServerStartError(f"llama.cpp's server does not answer within {START_S:.0f} s")


def process_cpu_s(pid: int) -> float:
    """Processor seconds of a running process so far."""
    import psutil

    spent = psutil.Process(pid).cpu_times()
    return float(spent.user + spent.system)


class LangExtract:
    """The labels that langextract finds.

    Attributes:
        n_unreadable: Reports whose answer langextract could not read; their labels are None.
    """

    def __init__(self, task: Task, address: str) -> None:
        import langextract
        from langextract.core.exceptions import LangExtractError
        from langextract.factory import ModelConfig

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._langextract, self._error = langextract, LangExtractError
        self._task, self._steps = task, [step for step in task.steps if step.only_if_present is None or step.kind == "relation"]
        arguments = {
            "api_key": "loopback",
            "base_url": address,
            "max_workers": 1,
            "temperature": 0.0,
            "max_output_tokens": ANSWER_TOKENS,
        }
        self._config = ModelConfig(model_id="local", provider="OpenAILanguageModel", provider_kwargs=arguments)
        self._prompt = " ".join(step.prompt.instruction for step in self._steps)
        self._examples = [self._example(step, number) for step in self._steps for number in range(len(step.prompt.examples))]
        self.n_unreadable = 0

    def read(self, reports: Sequence[Report]) -> list[Labels | None]:
        """One result a report, in order, one request at a time, as langextract does with local models."""
        return [self._read_one(report) for report in reports]

    def _read_one(self, report: Report) -> Labels | None:
        try:
            document = self._langextract.extract(
                text_or_documents=report.text,
                prompt_description=self._prompt,
                examples=self._examples,
                config=self._config,
                use_schema_constraints=False,  # llama_cpp.server knows json_object, not json_schema
                resolver_params={"suppress_parse_errors": False},
                max_workers=1,
                show_progress=False,
                fetch_urls=False,
            )
        except self._error:
            self.n_unreadable += 1
            return None
        return Labels(report.report_id, self._values(document.extractions or []))

    def _values(self, extractions: Sequence[Any]) -> dict[str, frozenset[str]]:
        keys = {self._task.label(key).casefold(): key for key in self._task.keys}
        values = {self._task.label(value).casefold(): value for value in self._task.values}
        found: dict[str, set[str]] = {}
        for extraction in extractions:
            key = keys.get(str(extraction.extraction_class).strip().casefold())
            if key is None:
                continue
            said = (extraction.attributes or {}).get(VALUES_ATTRIBUTE, "")
            words = said if isinstance(said, list) else str(said).split(",")
            known = [values[word] for word in (str(one).strip().casefold() for one in words) if word in values]
            found.setdefault(key, set()).update(known, self._task.entities[key].implied)
        return {key: frozenset(some) for key, some in found.items()}

    def _example(self, step: Step, number: int) -> Any:
        """A worked example of the task file; an extraction stands at the first mention of its subject."""
        example = step.prompt.examples[number]
        data = self._langextract.data
        extractions: list[Any] = []
        for mention in entity_mentions(self._task, example.report):
            groups = (group for group, members in self._task.groups.items() if mention.name in members)
            values = next((example.answer[name] for name in (mention.name, *groups) if name in example.answer), None)
            label = self._task.label(mention.name)
            if values is None or label in {done.extraction_class for done in extractions}:
                continue
            extractions.append(
                data.Extraction(
                    extraction_class=label,
                    extraction_text=example.report[mention.span.start : mention.span.end],
                    attributes={VALUES_ATTRIBUTE: ", ".join(self._task.label(value) for value in values)},
                )
            )
        return data.ExampleData(text=example.report, extractions=extractions)

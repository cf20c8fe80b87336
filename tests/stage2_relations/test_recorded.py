"""Recorded completions repeat a run without its model."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.contracts import ChatPrompt, Completion
from stage2_relations.language_model import AlignedCompletion, LanguageModelError
from stage2_relations.recorded import RecordedModel, RecordingError

PROMPT = ChatPrompt("", "prefix", "<report> 김철수, 결절 in RUL </report>")


class Counting:
    """Answers once a prompt and counts how often it was asked."""

    content_hash = "abc"
    context_tokens = 100

    def __init__(self) -> None:
        self.asked = 0

    def count_tokens(self, prompt: ChatPrompt) -> int:
        return len(prompt.prefix + prompt.body)

    def complete(self, prompt: ChatPrompt, *, grammar: str | None, max_tokens: int) -> Completion:
        self.asked += 1
        if "broken" in prompt.body:
            raise LanguageModelError("no answer")
        return AlignedCompletion(f"answer {self.asked}", (-0.1, -0.2), True, (6, 8))


def test_recording_repeats_answers_and_counts_without_the_model(tmp_path: Path) -> None:
    path, model = tmp_path / "recording.jsonl", Counting()
    recorded = RecordedModel(path, model)
    first = recorded.complete(PROMPT, grammar="g", max_tokens=5)
    assert recorded.complete(PROMPT, grammar="g", max_tokens=5) == first
    assert recorded.complete(PROMPT, grammar="other", max_tokens=5) != first
    count = recorded.count_tokens(PROMPT)
    assert model.asked == 2
    again = RecordedModel(path)
    assert again.complete(PROMPT, grammar="g", max_tokens=5) == first
    assert (again.count_tokens(PROMPT), again.context_tokens, again.content_hash) == (count, 100, "abc")


def test_unknown_prompt_without_a_model_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    RecordedModel(path, Counting()).complete(PROMPT, grammar=None, max_tokens=5)
    with pytest.raises(LanguageModelError, match="no answer is recorded"):
        RecordedModel(path).complete(PROMPT, grammar=None, max_tokens=6)
    with pytest.raises(LanguageModelError, match="no token count"):
        RecordedModel(path).count_tokens(PROMPT)


def test_recording_holds_no_report_text(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    recorded = RecordedModel(path, Counting())
    recorded.complete(PROMPT, grammar=None, max_tokens=5)
    recorded.count_tokens(PROMPT)
    assert "결절" not in path.read_text(encoding="utf-8")


def test_failure_of_the_model_is_not_recorded(tmp_path: Path) -> None:
    recorded = RecordedModel(tmp_path / "recording.jsonl", Counting())
    with pytest.raises(LanguageModelError):
        recorded.complete(ChatPrompt("", "", "broken"), grammar=None, max_tokens=5)
    assert not (tmp_path / "recording.jsonl").exists()


def test_cut_or_foreign_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    RecordedModel(path, Counting()).complete(PROMPT, grammar=None, max_tokens=5)
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[:-20], encoding="utf-8")
    with pytest.raises(RecordingError, match="jsonl:2: the last line is cut"):
        RecordedModel(path)
    path.write_text(whole.replace("abc", "other"), encoding="utf-8")
    with pytest.raises(RecordingError, match="model other with a context of 100; expected abc"):
        RecordedModel(path, Counting())
    path.write_text('{"model": null}\n', encoding="utf-8")
    with pytest.raises(RecordingError, match="jsonl:1: not a line of a recording"):
        RecordedModel(path)
    with pytest.raises(RecordingError, match="does not exist"):
        RecordedModel(tmp_path / "missing.jsonl")

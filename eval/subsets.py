"""The groups of reports that figures are split by: negated, hedged, house style, language, length.

Negated and hedged are found by reading the text (keywords with the negation reader, hedge words of hedges.yaml), not by annotation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from configs.keywords import compile_keyword
from configs.schema import Task
from configs.yaml_lines import YamlFile
from eval.gold import GoldReport
from pipeline.text_as_given import stage_text, text_problem

HEDGES_FILE = Path(__file__).parent / "hedges.yaml"
LENGTH_WORDS = (50, 150)  # published reports average 56 (CT) and 145 (MRI) tokens
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


@dataclass(frozen=True, slots=True)
class TextTraits:
    """What the groups go by; read from the text in NFC."""

    negated: bool
    hedged: bool
    hangul: bool
    n_words: int


@dataclass(frozen=True, slots=True)
class Subset:
    """The places in the gold of one group's reports; `group` is the question, `name` the answer to it."""

    group: str
    name: str
    members: tuple[int, ...]


class _HedgesFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    en: list[str]
    ko: list[str]


@cache
def hedge_patterns() -> tuple[re.Pattern[str], ...]:
    """The hedge words, compiled. Raises ConfigError for a damaged hedges.yaml."""
    words = YamlFile(HEDGES_FILE).check(_HedgesFile)
    return tuple(
        compile_keyword(word, whole_word=whole and word != r"\?")
        for whole, some in ((True, words.en), (False, words.ko))
        for word in some
    )


def text_traits(task: Task, text: str) -> TextTraits:
    """Reads one report: which kind of mention it has, its language and length."""
    from stage2_relations.assertion import read_mentions

    if text_problem(text) is not None:
        return TextTraits(negated=False, hedged=False, hangul=_HANGUL.search(text) is not None, n_words=len(text.split()))
    read = stage_text(text).text
    found = read_mentions(task, read)
    stated = {mention.sentence for mention in found.entities if mention.assertion == "present"}
    sentences = [read[found.sentences[index].start : found.sentences[index].end] for index in stated]
    return TextTraits(
        negated=any(mention.assertion == "negated" for mention in found.entities),
        hedged=any(pattern.search(sentence) for pattern in hedge_patterns() for sentence in sentences),
        hangul=_HANGUL.search(read) is not None,
        n_words=len(read.split()),
    )


def subsets(gold: Sequence[GoldReport], traits: Sequence[TextTraits | None]) -> list[Subset]:
    """Every group that has a report. `traits` is None for a report without text, which then is in no group that needs one."""
    named: dict[tuple[str, str], list[int]] = {key: [] for key in _ORDER}
    for place, (report, trait) in enumerate(zip(gold, traits, strict=True)):
        if report.style is not None:
            named.setdefault(("house style", report.style), []).append(place)
        if trait is not None:
            named["negated finding", "yes" if trait.negated else "no"].append(place)
            named["hedged finding", "yes" if trait.hedged else "no"].append(place)
            named["language", "with Korean" if trait.hangul else "without Korean"].append(place)
            named["length", _length(trait.n_words)].append(place)
    order = list(dict.fromkeys(group for group, _ in named))
    filled = [Subset(group, name, tuple(members)) for (group, name), members in named.items() if members]
    return sorted(filled, key=lambda s: (order.index(s.group), s.name if s.group == "house style" else ""))


def _length(n_words: int) -> str:
    return _LENGTHS[sum(n_words > limit for limit in LENGTH_WORDS)]


_LENGTHS = (
    f"up to {LENGTH_WORDS[0]} words",
    f"{LENGTH_WORDS[0] + 1} to {LENGTH_WORDS[1]} words",
    f"more than {LENGTH_WORDS[1]} words",
)
_ORDER = [
    ("negated finding", "yes"),
    ("negated finding", "no"),
    ("hedged finding", "yes"),
    ("hedged finding", "no"),
    ("language", "with Korean"),
    ("language", "without Korean"),
    *(("length", name) for name in _LENGTHS),
]

"""Augmentation that keeps labels true: a report and its labels in, another report with labels that hold for it out, or None.

None means that the change cannot be made with certainty for this report (a labelled key that no keyword finds, overlapping
mentions, nothing to change). Every function is a pure function of its arguments and the given random generator.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.contracts import Span
from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Task

Labels = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and what it states: subject key to value keys, as in an annotation file."""

    text: str
    labels: Labels


@dataclass(frozen=True, slots=True)
class SurfaceForms:
    """How the training reports write each entity key and value: name to the distinct strings seen, Latin and Hangul apart."""

    latin: Mapping[str, tuple[str, ...]]
    hangul: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, task: Task, reports: Sequence[LabelledText]) -> SurfaceForms:
        """Collects from training reports only; a form that two names share is left out."""
        seen: dict[str, set[str]] = defaultdict(set)
        for report in reports:
            for mention in [*entity_mentions(task, report.text), *value_mentions(task, report.text)]:
                seen[" ".join(report.text[mention.span.start : mention.span.end].split())].add(mention.name)
        latin: dict[str, list[str]] = defaultdict(list)
        hangul: dict[str, list[str]] = defaultdict(list)
        for form in sorted(seen):
            if len(seen[form]) == 1:
                (name,) = seen[form]
                (hangul if has_hangul(form) else latin)[name].append(form)
        return cls({k: tuple(v) for k, v in latin.items()}, {k: tuple(v) for k, v in hangul.items()})

    def pick(self, name: str, like: str, rng: random.Random) -> str | None:
        """A form of `name` in the script and capitals of `like`; None when none was seen."""
        forms = (self.hangul if has_hangul(like) else self.latin).get(name)
        if not forms:
            return None
        form = rng.choice(forms)
        if like.isupper() and len(like) > 4:
            return form.upper()
        return form[0].upper() + form[1:] if like[0].isupper() and form[:1].islower() else form


def has_hangul(text: str) -> bool:
    """Whether any Hangul syllable or jamo stands in the text."""
    return re.search("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]", text) is not None


def exchange_entities(task: Task, report: LabelledText, forms: SurfaceForms, rng: random.Random) -> LabelledText | None:
    """Renames entity keys consistently, mentions and labels alike: negated nodules become negated effusions, and so on.

    Only keys with the same choice of values change places (the nine lesions among themselves; the three tumours), so the
    labels' values stay possible.
    """
    mentions = entity_mentions(task, report.text)
    found = {mention.name for mention in mentions}
    if not found or not set(report.labels) <= found or _overlapping(mentions):
        return None
    renamed: dict[str, str] = {}
    for group in _exchangeable(task):
        names = list(group)
        rng.shuffle(names)
        renamed.update(zip(group, names, strict=True))
    text = _rewrite(report.text, [(m.span, renamed[m.name]) for m in mentions if renamed[m.name] != m.name], forms, rng)
    if text is None or text == report.text:
        return None
    after = sorted(mention.name for mention in entity_mentions(task, text))
    if after != sorted(renamed[mention.name] for mention in mentions):
        return None
    return LabelledText(text, {renamed[key]: values for key, values in report.labels.items()})


def exchange_values(task: Task, report: LabelledText, forms: SurfaceForms, rng: random.Random) -> LabelledText | None:
    """Renames values consistently, mentions and labels alike (rul ↔ lll …), among values of the same kind.

    Sided words outside the mentions ("right hemithorax") are left alone, so a report that has one is refused.
    """
    mentions = value_mentions(task, report.text)
    labelled = {value for values in report.labels.values() for value in values} - _implied(task)
    spans = defaultdict(set)
    for mention in mentions:
        spans[mention.span].add(mention.name)
    if not labelled or not labelled <= {mention.name for mention in mentions}:
        return None
    if any(len(names) > 1 for names in spans.values()) or _overlapping(mentions) or _loose_sides(report.text, mentions):
        return None
    names = sorted(name for name, value in task.values.items() if not value.parts and value.side and name in forms.latin)
    lobes = [name for name in names if not name.endswith("_lung")]
    shuffled = lobes[:]
    rng.shuffle(shuffled)
    renamed = {name: name for name in task.values} | dict(zip(lobes, shuffled, strict=True))
    text = _rewrite(report.text, [(m.span, renamed[m.name]) for m in mentions if renamed[m.name] != m.name], forms, rng)
    if text is None or text == report.text:
        return None
    if sorted(m.name for m in value_mentions(task, text)) != sorted(renamed[m.name] for m in mentions):
        return None
    labels = {key: tuple(renamed[value] for value in values) for key, values in report.labels.items()}
    return LabelledText(text, labels)


def add_typos(report: LabelledText, rng: random.Random, *, share_of_words: float) -> LabelledText:
    """Slips of typing in Latin words of five letters or more: two letters exchanged, one lost, one doubled. Labels stay."""

    def slip(match: re.Match[str]) -> str:
        word = match.group()
        if rng.random() >= share_of_words:
            return word
        at = rng.randrange(1, len(word) - 2)
        kind = rng.randrange(3)
        if kind == 0:
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return word[:at] + word[at + 1 :] if kind == 1 else word[: at + 1] + word[at:]

    return LabelledText(re.sub(r"[A-Za-z]{5,}", slip, report.text), report.labels)


def change_case(report: LabelledText, rng: random.Random) -> LabelledText:
    """All lower or all upper case, as dictation systems write."""
    return LabelledText(report.text.lower() if rng.random() < 0.7 else report.text.upper(), report.labels)


def join_lines(report: LabelledText) -> LabelledText:
    """Line breaks to spaces: a run-on report. Labels stay; spans of the original do not."""
    return LabelledText(" ".join(report.text.split()), report.labels)


_NEGATED_LISTS = (
    "No {0}.",
    "No {0} or {1}.",
    "There is no {0}, {1} or {2}.",
    "{0} (-), {1} (-).",
    "no definite {0} nor {1}",
    "Negative for {0} and {1}.",
    "No evidence of {0}.",
    "{0} is not seen.",
    "Without {0}.",
    "{0}나 {1}는 보이지 않음.",
    "{0} 없음.",
    "{0}, {1} 소견 없음.",
    "뚜렷한 {0}은 관찰되지 않음.",
)
_HISTORY = (
    "Clinical information: {0}.",
    "History of {0}.",
    "Indication: rule out {0}",
    "Previously noted {0} has resolved.",
    "The {0} on the prior study is no longer visible.",
    "이전에 보이던 {0}은 소실됨.",
)


def add_statements(task: Task, report: LabelledText, forms: SurfaceForms, rng: random.Random) -> LabelledText | None:
    """Adds one sentence about keys that the report does not mention, in which they are negated, historical or resolved.

    Labels stay. None when the report mentions too many keys to find one that it does not.
    """
    mentioned = {mention.name for mention in entity_mentions(task, report.text)} | set(report.labels)
    free = [key for key in task.keys if key not in mentioned]
    if len(free) < 3:
        return None
    rng.shuffle(free)
    history = rng.random() < 0.3
    frame = rng.choice(_HISTORY if history else _NEGATED_LISTS)
    like = "결절" if has_hangul(report.text) and rng.random() < 0.5 else "nodule"
    words = [forms.pick(key, like, rng) for key in free[:3]]
    if any(word is None for word in words):
        return None
    sentence = frame.format(*words)
    lines = report.text.split("\n")
    at = 0 if history else rng.choice([0, len(lines)])
    lines.insert(at, sentence)
    return LabelledText("\n".join(lines), report.labels)


def join_reports(first: LabelledText, second: LabelledText) -> LabelledText | None:
    """Both texts one after the other; every key is present that either states. None when both state one key (values could mix)."""
    if set(first.labels) & set(second.labels):
        return None
    return LabelledText(f"{first.text}\n{second.text}", {**first.labels, **second.labels})


def _exchangeable(task: Task) -> list[tuple[str, ...]]:
    """Groups of keys that have the same allowed values and stand in the same relation steps."""
    groups: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for key, entity in task.entities.items():
        relation_steps = tuple(step.name for step in task.steps if step.kind == "relation" and key in step.subjects)
        groups[(entity.values, relation_steps)].append(key)
    return [tuple(group) for group in groups.values()]


def _implied(task: Task) -> set[str]:
    return {value for entity in task.entities.values() for value in entity.implied}


def _overlapping(mentions: Sequence[Mention]) -> bool:
    ordered = sorted(mentions, key=lambda mention: mention.span)
    return any(a.span.end > b.span.start for a, b in itertools.pairwise(ordered))


_SIDE_WORD = re.compile(r"(?<![A-Za-z])(?:right|left|rt|lt|bilateral|both|bi)(?![A-Za-z])|우측|좌측|양측|오른|왼", re.IGNORECASE)


def _loose_sides(text: str, mentions: Sequence[Mention]) -> bool:
    """Whether a word of side stands outside every value mention."""
    return any(
        not any(mention.span.start <= match.start() and match.end() <= mention.span.end for mention in mentions)
        for match in _SIDE_WORD.finditer(text)
    )


def _rewrite(text: str, changes: Sequence[tuple[Span, str]], forms: SurfaceForms, rng: random.Random) -> str | None:
    """The text with each span replaced by a form of its new name; None when a form is missing."""
    for span, name in sorted(changes, key=lambda change: change[0], reverse=True):
        form = forms.pick(name, text[span.start : span.end], rng)
        if form is None:
            return None
        text = text[: span.start] + form + text[span.end :]
    return text

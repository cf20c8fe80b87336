"""Training examples of the encoder: windows and targets of annotated reports, as given and augmented, and of weak ones."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.mentions import Mention, entity_mentions, value_mentions
from configs.schema import Task
from stage1_encoder.marks import MarkedWindow, WindowCut
from stage1_encoder.weak_labels import KeywordFlagger
from training.augment import (
    LabelledText,
    SurfaceForms,
    add_statements,
    add_typos,
    change_case,
    exchange_entities,
    exchange_values,
    has_hangul,
    join_reports,
)
from training.corpus import AnnotatedReport, CorpusError, json_lines, read_annotations, read_texts
from training.held_out import NOTHING, HeldOut, tell_left_out
from training.reorder import change_order
from training.settings import AugmentationSettings

# Only headings whose sections are asserted: without "HISTORY:" a lesion of the past would read as present.
_HEADERS = re.compile(r"^[ \t]*(?:findings?|impressions?|conclusions?|소견|결론)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)
_AFTER_WORD = re.compile(r"(?<=[A-Za-z]{3})(?= (?:and |in |of |with |at )?[A-Za-z])")
_PARTICLES = ("이", "은", "는", "의", "에", "을", "과", "도")


@dataclass(frozen=True, slots=True)
class FlagExample:
    """The windows of one text, 0 or 1 for each key of the task, and the weight of its loss."""

    windows: tuple[MarkedWindow, ...]
    targets: tuple[float, ...]
    weight: float


def targets_of(labels: Container[str], task: Task) -> tuple[float, ...]:
    """1 for keys in `labels`, else 0, in the order of the task."""
    return tuple(float(key in labels) for key in task.keys)


def exchange_wording(task: Task, text: LabelledText, forms: SurfaceForms, rng: random.Random) -> LabelledText | None:
    """Half of the mentions of entities and values written as another report writes them, in Latin or in Hangul. Labels stay.

    None when a keyword would then be found that was not, or one that was is lost.
    """
    mentions = sorted([*entity_mentions(task, text.text), *value_mentions(task, text.text)], key=lambda mention: mention.span)
    if any(before.span.end > after.span.start for before, after in itertools.pairwise(mentions)):
        return None
    changed = text.text
    for mention in reversed(mentions):
        start, end = mention.span.start, mention.span.end
        like = rng.choice([changed[start:end], "nodule", "결절"])
        form = forms.pick(mention.name, like, rng)
        if form is not None and rng.random() < 0.5:
            changed = changed[:start] + form + changed[end:]
    if changed == text.text or _names(entity_mentions(task, changed)) != _names(entity_mentions(task, text.text)):
        return None
    return LabelledText(changed, text.labels)


def _names(mentions: Sequence[Mention]) -> list[str]:
    return [mention.name for mention in sorted(mentions, key=lambda mention: mention.span)]


def augmented(
    task: Task,
    text: LabelledText,
    others: Sequence[LabelledText],
    forms: SurfaceForms,
    settings: AugmentationSettings,
    rng: random.Random,
) -> LabelledText:
    """The text after each change that `settings` draws for it; changes that cannot be made with certainty are left out."""
    if rng.random() < settings.exchange_entities:
        text = exchange_entities(task, text, forms, rng) or text
    if rng.random() < settings.exchange_values:
        text = exchange_values(task, text, forms, rng) or text
    if rng.random() < settings.exchange_wording:
        text = exchange_wording(task, text, forms, rng) or text
    # No draw where it is off: examples of settings without it stay as they were.
    if settings.order and rng.random() < settings.order:
        text = change_order(task, text, rng) or text
    if rng.random() < settings.join_reports:
        text = join_reports(text, rng.choice(others)) or text
    if rng.random() < settings.add_statements:
        text = add_statements(task, text, forms, rng) or text
    if rng.random() < settings.remove_headers:
        text = LabelledText(_HEADERS.sub("", text.text), text.labels)
    if rng.random() < settings.particles and has_hangul(text.text):
        text = LabelledText(
            _AFTER_WORD.sub(lambda _: rng.choice(_PARTICLES) if rng.random() < 0.08 else "", text.text), text.labels
        )
    if rng.random() < settings.change_case:
        text = change_case(text, rng)
    if rng.random() < settings.typos:
        text = add_typos(text, rng, share_of_words=settings.typo_share_of_words)
    return text


def weak_texts(path: Path, task: Task, held_out: HeldOut = NOTHING) -> list[LabelledText]:
    """The reports of a file of `radtag train weak-label`; a file of plain texts is labelled by keywords, without negation.

    Reports in `held_out` are left out, and a log line says how many.

    Raises:
        CorpusError: a line that is neither, or a file that mixes both.
    """
    _, first = next(json_lines(path), (0, {}))
    if "labels" in first:
        annotated = read_annotations(path, task)
        labelled = [LabelledText(item.report.text, item.labels) for item in annotated if item.report not in held_out]
        tell_left_out(path, n_left_out=len(annotated) - len(labelled), n_reports=len(annotated))
        return labelled
    if (number := next((number for number, data in json_lines(path) if "labels" in data), None)) is not None:
        raise CorpusError(f"{path}:{number}: has labels, but the first report has none; all or none is expected")
    reports = read_texts(path)
    texts = [report.text for report in reports if report not in held_out]
    tell_left_out(path, n_left_out=len(reports) - len(texts), n_reports=len(reports))
    flags = KeywordFlagger(task).flag(texts)
    return [LabelledText(text, dict.fromkeys(found.decided, ())) for text, found in zip(texts, flags, strict=True)]


class ExampleMaker:
    """Draws an epoch's examples: `copies` versions of every annotated report (the first as given), then the weak ones."""

    def __init__(
        self,
        task: Task,
        cut: WindowCut,
        reports: Sequence[AnnotatedReport],
        settings: AugmentationSettings,
        *,
        copies: int,
        seed: int,
        weak: Sequence[LabelledText] = (),
        weak_weight: float = 0.0,
    ) -> None:
        self._task, self._cut, self._settings, self._copies, self._seed = task, cut, settings, copies, seed
        self._texts = [LabelledText(item.report.text, item.labels) for item in reports]
        self._forms = SurfaceForms.of(task, self._texts)
        self._as_given = [self._example(text, 1.0) for text in self._texts]
        self._weak = [self._example(text, weak_weight) for text in weak]

    def examples(self, epoch: int) -> list[FlagExample]:
        """A pure function of the epoch's number, and as many in every epoch."""
        found = list(self._as_given)
        for copy in range(1, self._copies):
            rng = random.Random(f"{self._seed}/{epoch}/{copy}/augmentation")
            for text in self._texts:
                changed = augmented(self._task, text, self._texts, self._forms, self._settings, rng)
                found.append(self._unmarked(self._example(changed, 1.0), rng))
        return found + self._weak

    def _example(self, text: LabelledText, weight: float) -> FlagExample:
        return FlagExample(self._cut.windows(text.text), targets_of(set(text.labels), self._task), weight)

    def _unmarked(self, example: FlagExample, rng: random.Random) -> FlagExample:
        """The example without the marks of some keys, as if their keywords did not know the wording."""
        lost = {column for column in range(len(self._task.keys)) if rng.random() < self._settings.lose_marks}
        windows = tuple(
            MarkedWindow(window.ids, tuple(mark for mark in window.marks if mark[1] not in lost)) for window in example.windows
        )
        return FlagExample(windows, example.targets, example.weight)

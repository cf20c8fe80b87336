"""Reads and checks the task files: `load_task("chest_ct")` gives a frozen Task, or a ConfigError with file and line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.keywords import compile_keyword
from configs.yaml_lines import ConfigError, Location, YamlFile, did_you_mean

__all__ = ["ConfigError", "Entity", "Example", "Prompt", "Step", "Task", "Value", "compile_keyword", "known_tasks", "load_task"]

CONFIG_FOLDER = Path(__file__).parent
_FRAGMENT = re.compile(r"\{([a-z_]+)\}")
_TASK_LINE = re.compile(r"^task:", re.MULTILINE)
StepKind = Literal["presence", "relation"]
Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity key that stage 1 flags.

    Attributes:
        label: The key's name in prompts, hints and tables.
        patterns: Compiled keywords; a match anywhere in a text is a mention.
        values: The only values this entity can be related to, or None for all values of the step.
        implied: Values that hold whenever the entity is present (a pleural effusion is pleural).
    """

    key: str
    label: str
    patterns: tuple[re.Pattern[str], ...]
    values: tuple[str, ...] | None
    implied: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A relation value (a location, an episode). `parts` are the values a composite one stands for (bll: rll, lll).

    `loose_patterns` are wordings that may tell the value or something else: stage 2 may be asked about it, rules never read them.
    """

    key: str
    label: str
    patterns: tuple[re.Pattern[str], ...]
    parts: tuple[str, ...]
    side: Side | None
    loose_patterns: tuple[re.Pattern[str], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example of one step. `answer[subject]` lists value keys; None means: hinted, but not present."""

    report: str
    hints: tuple[str, ...]
    answer: Mapping[str, tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The wording of a step: `instruction` comes before the template, `heading` is the hint line's (`Target Lesions`)."""

    instruction: str
    heading: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One question to stage 2.

    A `presence` step asks which subjects are present, a `relation` step which values each subject has. A subject is an
    entity key or a group of the task. `only_if_present` names the earlier presence step whose answer limits this step's
    subjects: a subject is asked only if it, or a group that holds it, was found present there.
    """

    name: str
    kind: StepKind
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    only_if_present: str | None
    prompt: Prompt


@dataclass(frozen=True)
class Task:
    """A modality: what is extracted, by which words it is known, and how stage 2 is asked.

    Attributes:
        traps: Compiled phrases that look like keywords but are none (a thyroid nodule, mass effect): a keyword match inside
            one is dropped.
        groups: Name of a group of entities in a presence step (non_tumor_disease) to its entity keys.
        content_hash: sha256 of the file's bytes, part of every record's fingerprint.
    """

    name: str
    title: str
    path: Path
    entities: Mapping[str, Entity]
    values: Mapping[str, Value]
    groups: Mapping[str, tuple[str, ...]]
    group_labels: Mapping[str, str]
    traps: tuple[re.Pattern[str], ...]
    steps: tuple[Step, ...]
    content_hash: str

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Entity keys in the order of the file: the order of probabilities, hints and records everywhere."""
        return tuple(self.entities)

    def label(self, name: str) -> str:
        """The prompt label of an entity, a group or a value."""
        if name in self.entities:
            return self.entities[name].label
        if name in self.group_labels:
            return self.group_labels[name]
        return self.values[name].label

    def allowed_values(self, subject: str, step: Step) -> tuple[str, ...]:
        """The values of `step` that `subject` can have, in the order of the step."""
        entity = self.entities.get(subject)
        if entity is None or entity.values is None:
            return step.values
        return tuple(value for value in step.values if value in entity.values)

    def open_values(self, key: str) -> tuple[str, ...]:
        """The values that a report can give an entity, those that it implies apart; empty where no step asks for any."""
        asked = [step for step in self.steps if step.kind == "relation" and key in step.subjects]
        allowed = {value for step in asked for value in self.allowed_values(key, step)} - set(self.entities[key].implied)
        return tuple(value for value in self.values if value in allowed)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Keywords(_Strict):
    en: list[str] = Field(default_factory=list)
    ko: list[str] = Field(default_factory=list)


class _EntityFile(_Strict):
    label: str = Field(min_length=1)
    keywords: _Keywords
    values: list[str] | None = None
    implied: list[str] = Field(default_factory=list)


class _ValueFile(_Strict):
    label: str = Field(min_length=1)
    keywords: _Keywords
    loose: _Keywords = Field(default_factory=lambda: _Keywords())
    parts: list[str] = Field(default_factory=list)
    side: Side | None = None


class _GroupFile(_Strict):
    label: str = Field(min_length=1)
    entities: list[str] = Field(min_length=1)


class _ExampleFile(_Strict):
    report: str = Field(min_length=1)
    hints: list[str]
    answer: dict[str, list[str]]
    absent: list[str] = Field(default_factory=list)


class _StepFile(_Strict):
    name: str
    kind: StepKind
    heading: str = Field(min_length=1)
    instruction: str = Field(min_length=1)
    subjects: list[str] = Field(min_length=1)
    values: list[str] = Field(default_factory=list)
    only_if_present: str | None = None
    examples: list[_ExampleFile] = Field(min_length=1)


class _TaskFile(_Strict):
    task: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    fragments: dict[str, str] = Field(default_factory=dict)
    entities: dict[str, _EntityFile] = Field(min_length=1)
    values: dict[str, _ValueFile] = Field(default_factory=dict)
    groups: dict[str, _GroupFile] = Field(default_factory=dict)
    traps: _Keywords = Field(default_factory=_Keywords)
    steps: list[_StepFile] = Field(min_length=1)


def known_tasks() -> list[str]:
    """Names of the task files that ship with radtag."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.yaml") if _TASK_LINE.search(path.read_text(encoding="utf-8")))


def load_task(name_or_path: str | Path) -> Task:
    """The task of that name, or of the YAML file at that path (anything that ends in .yaml or .yml).

    Raises:
        ConfigError: unknown name, unreadable file, or a file that breaks a rule; the message has file, line and the nearest name.
    """
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        path = Path(text)
    else:
        path = CONFIG_FOLDER / f"{text}.yaml"
        if text not in known_tasks():
            raise ConfigError(f"task '{text}' is not known{did_you_mean(text, known_tasks())}")
    return _TaskReader(YamlFile(path)).task()


class _TaskReader:
    """Turns a checked file model into a Task; every refusal points at its line."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.model = file.check(_TaskFile)

    def task(self) -> Task:
        model = self.model
        overlap = sorted(set(model.entities) & (set(model.values) | set(model.groups)))
        if overlap:
            raise self.file.error(("entities", overlap[0]), f"'{overlap[0]}' is the name of an entity and of a value or group")
        for name in model.groups:
            if name in model.values:
                raise self.file.error(("groups", name), f"'{name}' is the name of a value and of a group")
        self._refuse_equal_labels()
        entities = {key: self._entity(key) for key in model.entities}
        values = {key: self._value(key) for key in model.values}
        for name, group in model.groups.items():
            self._known(group.entities, model.entities, "entity", ("groups", name, "entities"))
        return Task(
            name=model.task,
            title=model.title,
            path=self.file.path,
            entities=entities,
            values=values,
            groups={name: tuple(group.entities) for name, group in model.groups.items()},
            group_labels={name: group.label for name, group in model.groups.items()},
            traps=self._patterns(model.traps, ("traps",)),
            steps=tuple(self._step(i) for i in range(len(model.steps))),
            content_hash=hashlib.sha256(self.file.path.read_bytes()).hexdigest(),
        )

    def _refuse_equal_labels(self) -> None:
        """A model answers in labels: two names with one label could not be told apart."""
        seen: dict[str, str] = {}
        named = (("entities", self.model.entities), ("values", self.model.values), ("groups", self.model.groups))
        for section, items in named:
            for name, item in items.items():
                label = item.label.casefold()
                if label in seen:
                    raise self.file.error((section, name, "label"), f"label '{item.label}' is already the label of '{seen[label]}'")
                seen[label] = name

    def _entity(self, key: str) -> Entity:
        entity = self.model.entities[key]
        where = ("entities", key)
        self._known(entity.values or [], self.model.values, "value", (*where, "values"))
        self._known(entity.implied, self.model.values if entity.values is None else entity.values, "value", (*where, "implied"))
        return Entity(
            key=key,
            label=entity.label,
            patterns=self._patterns(entity.keywords, (*where, "keywords"), needed=True),
            values=None if entity.values is None else tuple(entity.values),
            implied=tuple(entity.implied),
        )

    def _value(self, key: str) -> Value:
        value = self.model.values[key]
        where = ("values", key)
        self._known(value.parts, self.model.values, "value", (*where, "parts"))
        return Value(
            key,
            value.label,
            self._patterns(value.keywords, (*where, "keywords"), needed=True),
            tuple(value.parts),
            value.side,
            self._patterns(value.loose, (*where, "loose")),
        )

    def _step(self, index: int) -> Step:
        step = self.model.steps[index]
        where: Location = ("steps", index)
        subjects = {**self.model.entities, **self.model.groups}
        self._known(step.subjects, subjects, "entity or group", (*where, "subjects"))
        self._known(step.values, self.model.values, "value", (*where, "values"))
        if (step.kind == "relation") != bool(step.values):
            wanted = "a relation step needs values" if step.kind == "relation" else "a presence step has no values"
            raise self.file.error((*where, "kind"), f"step '{step.name}' is of kind {step.kind}; {wanted}")
        if step.name in {s.name for s in self.model.steps[:index]}:
            raise self.file.error((*where, "name"), f"step '{step.name}' stands twice")
        earlier = [s.name for s in self.model.steps[:index] if s.kind == "presence"]
        if step.only_if_present is not None:
            self._known([step.only_if_present], earlier, "earlier presence step", (*where, "only_if_present"))
        examples = tuple(self._example(index, n) for n in range(len(step.examples)))
        return Step(
            name=step.name,
            kind=step.kind,
            subjects=tuple(step.subjects),
            values=tuple(step.values),
            only_if_present=step.only_if_present,
            prompt=Prompt(step.instruction.strip(), step.heading.strip(), examples),
        )

    def _example(self, step_index: int, index: int) -> Example:
        step = self.model.steps[step_index]
        example = step.examples[index]
        where: Location = ("steps", step_index, "examples", index)
        self._known(example.hints, step.subjects, "subject of this step", (*where, "hints"))
        self._known(example.answer, step.subjects, "subject of this step", (*where, "answer"))
        self._known(example.absent, step.subjects, "subject of this step", (*where, "absent"))
        for subject, values in example.answer.items():
            self._known(values, step.values, "value of this step", (*where, "answer", subject))
            entity = self.model.entities.get(subject)
            if entity is not None and entity.values is not None:
                self._known(values, entity.values, f"value of '{subject}'", (*where, "answer", subject))
        both = sorted(set(example.absent) & set(example.answer))
        if both:
            raise self.file.error((*where, "absent"), f"'{both[0]}' is both answered and absent")
        answer: dict[str, tuple[str, ...] | None] = {subject: tuple(values) for subject, values in example.answer.items()}
        answer.update(dict.fromkeys(example.absent))
        return Example(example.report.strip(), tuple(example.hints), answer)

    def _known(self, names: Iterable[str], known: Iterable[str], kind: str, where: Location) -> None:
        known_names = list(known)
        for position, name in enumerate(names):
            if name not in known_names:
                spot = name if isinstance(names, Mapping) else position
                raise self.file.error((*where, spot), f"{kind} '{name}' is not known{did_you_mean(name, known_names)}")

    def _patterns(self, keywords: _Keywords, where: Location, *, needed: bool = False) -> tuple[re.Pattern[str], ...]:
        patterns = []
        for language, words in (("en", keywords.en), ("ko", keywords.ko)):
            for position, word in enumerate(words):
                spot: Location = (*where, language, position)
                body = self._with_fragments(word, spot)
                try:
                    pattern = compile_keyword(body, whole_word=language == "en")
                except re.error as error:
                    raise self.file.error(spot, f"keyword '{word}' is not a regular expression: {error.msg}") from None
                if pattern.match(""):
                    raise self.file.error(spot, f"keyword '{word}' matches the empty text")
                patterns.append(pattern)
        if needed and not patterns:
            raise self.file.error(where, "no keyword; at least one, English or Korean, is expected")
        return tuple(patterns)

    def _with_fragments(self, word: str, where: Location) -> str:
        def text(match: re.Match[str]) -> str:
            self._known([match[1]], self.model.fragments, "fragment", where)
            return f"(?:{self.model.fragments[match[1]]})"

        return _FRAGMENT.sub(text, word)

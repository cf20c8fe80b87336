"""Reads and checks assertion_cues.yaml: the words by which a mention is negated, resolved, historical or about another organ.

One compiled pattern a kind of cue: a negation is looked up once a sentence, however many words the file lists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from configs.schema import Task, compile_keyword
from configs.yaml_lines import ConfigError, Location, YamlFile, did_you_mean

__all__ = ["ConfigError", "Course", "Cues", "TaskCues", "load_cues"]

CUE_FILE = Path(__file__).parent / "assertion_cues.yaml"
NEVER = re.compile(r"(?!)")
_FRAGMENT = re.compile(r"\{([a-z_]+)\}")
_SIDES = ("left", "right")


@dataclass(frozen=True, slots=True)
class Course:
    """How reports speak of a followed subject (a treated tumour) and of its change. A pattern without words never matches.

    Attributes:
        followed: Entity keys that count as present when the history names them and the report follows them.
        referents: Words that stand for the followed subject without naming it (the lesion, the enhancement).
        bystanders: Things beside it whose change is not the subject's (a subdural fluid, a ventricle).
        follow_up: Words that say the report follows a known, treated subject; without one no value is read.
        asked: Words that say the history only asks for a subject ("r/o metastasis", "staging").
        faint: Referents that change for many reasons (oedema, T2 signal): read only where nothing else is said.
        explained: Causes other than the subject; a nameless change that its own or the next sentence puts down to one is not
            the subject's.
        not_now: Words next to a change that place it in the past ("the earlier increase").
        outright: Value key to further words of comparison, read like value mentions.
        ignored: Value mentions that, taken alone, compare nothing ("residual").
        statements: Value key to the phrases that state it where nothing else is said ("no evidence of recurrence": stable).
        resolved_value: The value of a subject that is gone now, or None.
        measured: Values of a size that grew (`larger`), shrank (`smaller`) or stayed (`equal`) between two measurements.
        yields: Entity key to the mentions that do not count beside another followed subject (CSF seeding of a glioma).
    """

    followed: tuple[str, ...]
    referents: re.Pattern[str]
    bystanders: re.Pattern[str]
    follow_up: re.Pattern[str]
    asked: re.Pattern[str]
    faint: re.Pattern[str]
    explained: re.Pattern[str]
    not_now: re.Pattern[str]
    outright: Mapping[str, re.Pattern[str]]
    ignored: re.Pattern[str]
    statements: Mapping[str, re.Pattern[str]]
    resolved_value: str | None
    measured: Mapping[str, str]
    yields: Mapping[str, re.Pattern[str]]


@dataclass(frozen=True, slots=True)
class TaskCues:
    """Cues of one task.

    Attributes:
        elsewhere: Organs outside the task's target; `elsewhere_headings` begin a line that is about one.
        not_a_value: Phrases whose values are no finding's (the lobe of an earlier lobectomy).
        surgery_site: Words that refer back to the value of such a phrase (the staple line).
        narrower: Wide values to the values inside them: "Lt lung: atelectasis in LLL" gives only the inner one.
        course: None where values are no comparison with an earlier study (locations).
    """

    elsewhere: re.Pattern[str]
    elsewhere_headings: re.Pattern[str]
    historical_before: re.Pattern[str]
    historical_after: re.Pattern[str]
    not_a_value: re.Pattern[str]
    surgery_site: re.Pattern[str]
    narrower: Mapping[str, tuple[str, ...]]
    course: Course | None


@dataclass(frozen=True, slots=True)
class Cues:
    """Compiled cues of all tasks. `tasks` holds only the tasks that have words of their own; see `of`."""

    not_negations: re.Pattern[str]
    unchanged: re.Pattern[str]
    negations_before: re.Pattern[str]
    negations_after: re.Pattern[str]
    negation_marks: re.Pattern[str]
    dismissals_after: re.Pattern[str]
    resolutions_before: re.Pattern[str]
    resolutions_after: re.Pattern[str]
    historical_before: re.Pattern[str]
    historical_after: re.Pattern[str]
    asked: re.Pattern[str]
    scope_ends: re.Pattern[str]
    new_finding: re.Pattern[str]
    list_joins: re.Pattern[str]
    presupposed_before: re.Pattern[str]
    presupposed_after: re.Pattern[str]
    no_noun: re.Pattern[str]
    anaphora: re.Pattern[str]
    same_place: re.Pattern[str]
    follows: re.Pattern[str]
    first_named: re.Pattern[str]
    last_named: re.Pattern[str]
    unaffected: re.Pattern[str]
    unplaced: re.Pattern[str]
    history_sections: re.Pattern[str]
    report_sections: re.Pattern[str]
    sides: Mapping[str, re.Pattern[str]]
    tasks: Mapping[str, TaskCues]
    content_hash: str

    def of(self, task: Task) -> TaskCues:
        """The cues of that task; a task that the file does not name has none."""
        return self.tasks.get(task.name, _NO_TASK_CUES)


_NO_TASK_CUES = TaskCues(NEVER, NEVER, NEVER, NEVER, NEVER, NEVER, {}, None)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _empty_means_none(value: object) -> object:
    return {} if value is None else value


class _WordLists(_Strict):
    en: list[str] = Field(default_factory=list)
    ko: list[str] = Field(default_factory=list)


_Words = Annotated[_WordLists, BeforeValidator(_empty_means_none)]


class _CourseFile(_Strict):
    referents: _Words
    bystanders: _Words
    follow_up: _Words
    asked: _Words
    faint: _Words
    explained: _Words
    not_now: _Words
    outright: dict[str, _Words] = Field(default_factory=dict)
    ignored: _Words
    followed: list[str] = Field(default_factory=list)
    statements: dict[str, _Words] = Field(default_factory=dict)
    resolved_value: str | None = None
    measured: dict[Literal["larger", "smaller", "equal"], str] = Field(default_factory=dict)
    yields: dict[str, _Words] = Field(default_factory=dict)


class _TaskFile(_Strict):
    elsewhere: _Words = Field(default_factory=_WordLists)
    elsewhere_headings: _Words = Field(default_factory=_WordLists)
    historical_before: _Words = Field(default_factory=_WordLists)
    historical_after: _Words = Field(default_factory=_WordLists)
    not_a_value: _Words = Field(default_factory=_WordLists)
    surgery_site: _Words = Field(default_factory=_WordLists)
    narrower: dict[str, list[str]] = Field(default_factory=dict)
    course: _CourseFile | None = None


class _CueFile(_Strict):
    fragments: dict[str, str] = Field(default_factory=dict)
    not_negations: _Words
    unchanged: _Words
    negations_before: _Words
    negations_after: _Words
    negation_marks: _Words
    dismissals_after: _Words
    resolutions_before: _Words
    resolutions_after: _Words
    historical_before: _Words
    historical_after: _Words
    asked: _Words
    scope_ends: _Words
    new_finding: _Words
    list_joins: _Words
    presupposed_before: _Words
    presupposed_after: _Words
    no_noun: _Words
    anaphora: _Words
    same_place: _Words
    follows: _Words
    first_named: _Words
    last_named: _Words
    unaffected: _Words
    unplaced: _Words
    history_sections: _Words
    report_sections: _Words
    sides: dict[str, _Words]
    tasks: dict[str, _TaskFile] = Field(default_factory=dict)


@lru_cache(maxsize=8)
def load_cues(path: Path = CUE_FILE) -> Cues:
    """The cues of that file, read once.

    Raises:
        ConfigError: unreadable file, unknown name, or a cue that is no regular expression; the message has file and line.
    """
    file = YamlFile(path)
    return _CueReader(file, file.check(_CueFile)).cues()


class _CueReader:
    def __init__(self, file: YamlFile, model: _CueFile) -> None:
        self.file = file
        self.model = model

    def cues(self) -> Cues:
        for side in self.model.sides:
            if side not in _SIDES:
                raise self.file.error(("sides", side), f"side '{side}' is not known{did_you_mean(side, _SIDES)}")
        kinds = [name for name in _CueFile.model_fields if name not in ("fragments", "sides", "tasks")]
        return Cues(
            **{name: self._pattern(getattr(self.model, name), (name,)) for name in kinds},
            sides={side: self._pattern(words, ("sides", side)) for side, words in self.model.sides.items()},
            tasks={name: self._task(name, task) for name, task in self.model.tasks.items()},
            content_hash=hashlib.sha256(self.file.path.read_bytes()).hexdigest(),
        )

    def _task(self, name: str, task: _TaskFile) -> TaskCues:
        where = ("tasks", name)
        kinds = [field for field in _TaskFile.model_fields if field not in ("course", "narrower")]
        return TaskCues(
            **{field: self._pattern(getattr(task, field), (*where, field)) for field in kinds},
            narrower={value: tuple(parts) for value, parts in task.narrower.items()},
            course=None if task.course is None else self._course(task.course, (*where, "course")),
        )

    def _course(self, course: _CourseFile, where: tuple[str, ...]) -> Course:
        def words(name: str) -> re.Pattern[str]:
            return self._pattern(getattr(course, name), (*where, name))

        return Course(
            followed=tuple(course.followed),
            referents=words("referents"),
            faint=words("faint"),
            bystanders=words("bystanders"),
            explained=words("explained"),
            follow_up=words("follow_up"),
            asked=words("asked"),
            not_now=words("not_now"),
            ignored=words("ignored"),
            outright=self._patterns(course.outright, (*where, "outright")),
            statements=self._patterns(course.statements, (*where, "statements")),
            yields=self._patterns(course.yields, (*where, "yields")),
            resolved_value=course.resolved_value,
            measured=dict[str, str](course.measured.items()),
        )

    def _patterns(self, words_by_key: Mapping[str, _WordLists], where: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
        return {key: self._pattern(words, (*where, key)) for key, words in words_by_key.items()}

    def _pattern(self, words: _WordLists, where: Location) -> re.Pattern[str]:
        english = "|".join(self._body(cue, (*where, "en", position)) for position, cue in enumerate(words.en))
        korean = [self._body(cue, (*where, "ko", position)) for position, cue in enumerate(words.ko)]
        # One look-behind for all English cues: three times as fast as one each.
        bodies = ([rf"(?<![A-Za-z])(?:{english})(?![A-Za-z])"] if english else []) + korean
        return re.compile("|".join(bodies), re.IGNORECASE) if bodies else NEVER

    def _body(self, cue: str, spot: Location) -> str:
        fragments = self.model.fragments
        for name in _FRAGMENT.findall(cue):
            if name not in fragments:
                raise self.file.error(spot, f"fragment '{name}' is not known{did_you_mean(name, fragments)}")
        try:
            pattern = compile_keyword(_FRAGMENT.sub(lambda match: f"(?:{fragments[match[1]]})", cue), whole_word=False)
        except re.error as error:
            raise self.file.error(spot, f"cue '{cue}' is not a regular expression: {error.msg}") from None
        if pattern.match(""):
            raise self.file.error(spot, f"cue '{cue}' matches the empty text")
        return f"(?:{pattern.pattern})"

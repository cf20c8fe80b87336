"""The course of a disease over a patient's reports: sequences, the published filters, changes and the days between reports.

A sequence uses only what the reports state. A report without an answer is unknown, and an unknown state is no state: its patient is
shown, but not counted. Filters after Shin et al., Sci Rep 2025;15:31550: at least three reports, one diagnosis, one episode a
report, a change only where the label changes, at most four changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median, quantiles

from configs.contracts import Report, TaggedReport
from configs.schema import Step, Task
from configs.yaml_lines import did_you_mean

MIN_REPORTS = 3
MAX_CHANGES = 4
ALL = "all"

Located = tuple[str, TaggedReport]
"""A record with the `file:line` it was read from."""


class TimelineError(Exception):
    """Records or reports of which no timeline can be made: `file:line: what was found; what is expected`."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One report of a patient.

    Attributes:
        when: None where the date is missing or cannot be read.
        states: Subject that is present to its values in the order of the task; empty: present, no episode stated. None: the record
            is failed or rejected, so nothing is known.
    """

    report_id: str
    when: datetime | None
    states: Mapping[str, tuple[str, ...]] | None


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient's reports by date; those without a date come last."""

    patient_id: str
    visits: tuple[Visit, ...]

    @property
    def subjects(self) -> list[str]:
        """Subjects that some report states as present."""
        return list(dict.fromkeys(subject for visit in self.visits for subject in visit.states or {}))


@dataclass(frozen=True, slots=True)
class Course:
    """A patient who passed every filter: one subject, and the reports that state an episode of it, in order."""

    patient: Patient
    subject: str
    steps: tuple[tuple[Visit, str], ...]

    @property
    def path(self) -> tuple[str, ...]:
        """The episodes with repeats taken together: one more than there are changes."""
        labels = [label for _, label in self.steps]
        return tuple(label for place, label in enumerate(labels) if place == 0 or label != labels[place - 1])

    @property
    def n_changes(self) -> int:
        """How often the label changes."""
        return len(self.path) - 1


@dataclass(frozen=True, slots=True)
class Filter:
    """How many patients a filter removed, and how many were left after it. `reason` is what the removed ones have."""

    name: str
    about: str
    reason: str
    n_removed: int
    n_left: int


@dataclass(frozen=True, slots=True)
class Problems:
    """Rows that a timeline cannot use as they are. `first` is where the first of each kind stands; None: there is none."""

    n_without_patient: int = 0
    first_without_patient: str | None = None
    n_without_date: int = 0
    first_without_date: str | None = None
    n_unreadable_date: int = 0
    first_unreadable_date: str | None = None
    n_unread: int = 0


@dataclass(frozen=True, slots=True)
class Days:
    """Days between two reports; figures are nan for n = 0. Quartiles by linear interpolation."""

    n: int
    median: float
    q1: float
    q3: float


@dataclass(frozen=True, slots=True)
class Change:
    """A change of label: from one report with an episode to the next one with another."""

    patient_id: str
    subject: str
    before: str
    after: str
    days: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What was found. `removed` has every other patient with the name of the filter that removed it."""

    task: Task
    step: Step
    n_records: int
    n_patients: int
    problems: Problems
    filters: tuple[Filter, ...]
    courses: tuple[Course, ...]
    removed: tuple[tuple[Patient, str], ...]
    fingerprints: tuple[str, ...] = field(default=())

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects whose course is followed, in the order of the task."""
        return course_subjects(self.task, self.step)

    def changes(self) -> list[Change]:
        """Every change of every course."""
        found = []
        for course in self.courses:
            for (earlier, before), (later, after) in pairwise(course.steps):
                if before != after:
                    found.append(Change(course.patient.patient_id, course.subject, before, after, _days(earlier, later)))
        return found

    def n_repeats(self) -> int:
        """Consecutive reports with an episode whose label is the same."""
        return sum(len(course.steps) - 1 - course.n_changes for course in self.courses)

    def intervals(self) -> dict[str, Days]:
        """Days between consecutive reports of the counted patients, for each subject and for all."""
        gaps: dict[str, list[int]] = {ALL: [], **{subject: [] for subject in self.subjects}}
        for course in self.courses:
            between = [_days(earlier, later) for earlier, later in pairwise(course.patient.visits)]
            gaps[course.subject] += between
            gaps[ALL] += between
        return {name: days_of(some) for name, some in gaps.items()}


def course_step(task: Task, name: str | None = None) -> Step:
    """The relation step whose values are the states. Raises TimelineError: none, an unknown one, or several without `name`."""
    steps = {step.name: step for step in task.steps if step.kind == "relation" and course_subjects(task, step)}
    if name is not None and name not in steps:
        raise TimelineError(f"{task.path}: relation step '{name}' is not known{did_you_mean(name, steps)}")
    if name is None and len(steps) != 1:
        problem = f"has several relation steps ({', '.join(steps)}); name one with --step" if steps else "has no relation step"
        raise TimelineError(f"{task.path}: task '{task.name}' {problem}")
    return steps[name] if name is not None else next(iter(steps.values()))


def course_subjects(task: Task, step: Step) -> tuple[str, ...]:
    """Entities of the step that have a choice of values."""
    return tuple(key for key in task.keys if key in step.subjects and len(task.allowed_values(key, step)) > 1)


def timeline(
    task: Task,
    step: Step,
    records: Iterable[Located],
    *,
    reports: Mapping[str, Report] | None = None,
    date_format: str | None = None,
    min_reports: int = MIN_REPORTS,
    max_changes: int = MAX_CHANGES,
) -> Timeline:
    """The courses of all patients.

    Args:
        reports: Patient and date by report id, for records that have none; what both say must be equal.
        date_format: Of `datetime.strptime`; None means ISO 8601 (2019-02-27, 20190227, 2019-02-27T10:30).

    Raises:
        TimelineError: a record of another task, an id that stands twice, patient or date that contradict `reports`, no record with
            a patient, no readable date at all.
    """
    collector = _Collector(task, step, reports, date_format)
    for where, record in records:
        collector.add(where, record)
    patients = collector.patients()
    filters, courses, removed = _filtered(patients, course_subjects(task, step), min_reports=min_reports, max_changes=max_changes)
    return Timeline(
        task=task,
        step=step,
        n_records=len(collector.seen),
        n_patients=len(patients),
        problems=collector.problems(),
        filters=tuple(filters),
        courses=tuple(courses),
        removed=tuple(removed),
        fingerprints=tuple(sorted(collector.fingerprints)),
    )


class _Collector:
    """Gathers visits by patient; keeps nothing of a record but its id, date and states."""

    def __init__(self, task: Task, step: Step, reports: Mapping[str, Report] | None, date_format: str | None) -> None:
        self.task, self.step, self.reports, self.date_format = task, step, reports, date_format
        self.subjects = course_subjects(task, step)
        self.seen: dict[str, str] = {}
        self.fingerprints: set[str] = set()
        self._visits: dict[str, list[Visit]] = {}
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, where: str, record: TaggedReport) -> None:
        if record.task != self.task.name:
            raise TimelineError(f"{where}: record is of task '{record.task}'; '{self.task.name}' is expected")
        if record.report_id in self.seen:
            raise TimelineError(f"{where}: report_id '{record.report_id}' stands twice; first in {self.seen[record.report_id]}")
        self.seen[record.report_id] = where
        if "fingerprint" in record.provenance:
            self.fingerprints.add(record.provenance["fingerprint"])
        patient_id, written = self._about(where, record)
        states = self._states(where, record)
        if states is None:
            self._count("unread", where)
        if patient_id is None or not patient_id.strip():
            self._count("without_patient", where)
            return
        when = None if written is None or not written.strip() else self._moment(written)
        if when is None:
            self._count("without_date" if written is None or not written.strip() else "unreadable_date", where)
        self._visits.setdefault(patient_id, []).append(Visit(record.report_id, when, states))

    def _about(self, where: str, record: TaggedReport) -> tuple[str | None, str | None]:
        """Patient and date of the record, else of `reports`."""
        given = None if self.reports is None else self.reports.get(record.report_id)
        if given is None:
            return record.patient_id, record.study_date
        for name, own, other in (
            ("patient_id", record.patient_id, given.patient_id),
            ("study_date", record.study_date, given.study_date),
        ):
            if own is not None and other is not None and own != other:
                raise TimelineError(f"{where}: '{name}' of report '{record.report_id}' is another one in --reports")
        return record.patient_id or given.patient_id, record.study_date or given.study_date

    def _states(self, where: str, record: TaggedReport) -> dict[str, tuple[str, ...]] | None:
        if record.entities is None or record.relations is None:
            return None
        said: dict[str, set[str]] = {e.key: set() for e in record.entities if e.present and e.key in self.subjects}
        for relation in record.relations:
            if relation.subject in said:
                if relation.value not in self.task.values:
                    raise TimelineError(
                        f"{where}: value '{relation.value}' is not known{did_you_mean(relation.value, self.task.values)}"
                    )
                said[relation.subject].add(relation.value)
        return {subject: tuple(v for v in self.step.values if v in values) for subject, values in said.items()}

    def _moment(self, written: str) -> datetime | None:
        try:
            if self.date_format is not None:
                return datetime.strptime(written.strip(), self.date_format).replace(tzinfo=None)
            return datetime.fromisoformat(written.strip()).replace(tzinfo=None)
        except ValueError:
            return None

    def _count(self, kind: str, where: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, where)

    def patients(self) -> list[Patient]:
        if not self.seen:
            raise TimelineError("no record was read; at least one is expected")
        if not self._visits:
            raise TimelineError(
                f"{self._first['without_patient']}: no record has a patient id; tag with patient ids or give --reports INPUT"
            )
        visits = [visit for some in self._visits.values() for visit in some]
        if all(visit.when is None for visit in visits):
            first = self._first.get("unreadable_date") or self._first["without_date"]
            raise TimelineError(f"{first}: no record has a date that can be read; expected {self.date_format or 'YYYY-MM-DD'}")
        return [Patient(patient_id, tuple(sorted(some, key=_order))) for patient_id, some in sorted(self._visits.items())]

    def problems(self) -> Problems:
        counts, first = self._counts, self._first
        return Problems(
            n_without_patient=counts["without_patient"],
            first_without_patient=first.get("without_patient"),
            n_without_date=counts["without_date"],
            first_without_date=first.get("without_date"),
            n_unreadable_date=counts["unreadable_date"],
            first_unreadable_date=first.get("unreadable_date"),
            n_unread=counts["unread"],
        )


def _order(visit: Visit) -> tuple[bool, datetime, str]:
    return visit.when is None, visit.when or datetime.min, visit.report_id


def _filtered(
    patients: Sequence[Patient], subjects: Sequence[str], *, min_reports: int, max_changes: int
) -> tuple[list[Filter], list[Course], list[tuple[Patient, str]]]:
    followed = ", ".join(subjects)
    tests: list[tuple[str, str, str, Callable[[Patient], bool]]] = [
        ("dated", "every report has a date that can be read", "a date is missing", lambda p: all(v.when for v in p.visits)),
        ("reports", f"at least {min_reports} reports", "too few reports", lambda p: len(p.visits) >= min_reports),
        ("read", "every report has an answer (none failed or rejected)", "an unknown report", _is_read),
        (
            "diagnosis",
            f"a diagnosis whose course is followed ({followed})",
            "none is followed",
            lambda p: bool(p.subjects),
        ),
        ("one_diagnosis", "one such diagnosis, not several", "several diagnoses", lambda p: len(p.subjects) == 1),
        (
            "one_episode",
            "no report states several episodes at once",
            "several episodes at once",
            lambda p: all(len(e) < 2 for e in _episodes(p)),
        ),
        ("order", "reports of the same moment state the same", "order is not known", _is_ordered),
        ("episode", "some report states an episode", "no episode stated", lambda p: any(_episodes(p))),
        ("changes", f"at most {max_changes} changes", "too many changes", lambda p: _course(p).n_changes <= max_changes),
    ]
    left = list(patients)
    filters: list[Filter] = []
    removed: list[tuple[Patient, str]] = []
    for name, about, reason, passes in tests:
        kept = [patient for patient in left if passes(patient)]
        ids = {patient.patient_id for patient in kept}
        removed += [(patient, name) for patient in left if patient.patient_id not in ids]
        filters.append(Filter(name, about, reason, len(left) - len(kept), len(kept)))
        left = kept
    return filters, [_course(patient) for patient in left], removed


def _is_read(patient: Patient) -> bool:
    return all(visit.states is not None for visit in patient.visits)


def _episodes(patient: Patient) -> list[tuple[str, ...]]:
    """The values of each report that states the patient's diagnosis."""
    return [values for visit in patient.visits for values in (visit.states or {}).values()]


def _is_ordered(patient: Patient) -> bool:
    return all(a.when != b.when or a.states == b.states for a, b in pairwise(patient.visits))


def _course(patient: Patient) -> Course:
    subject = patient.subjects[0]
    steps = tuple((visit, values[0]) for visit in patient.visits if (values := (visit.states or {}).get(subject)))
    return Course(patient, subject, steps)


def _days(earlier: Visit, later: Visit) -> int:
    if earlier.when is None or later.when is None:
        raise ValueError("a visit without a date has no distance")
    return (later.when.date() - earlier.when.date()).days


def days_of(gaps: Sequence[int]) -> Days:
    """Median and quartiles."""
    if not gaps:
        return Days(0, math.nan, math.nan, math.nan)
    if len(gaps) == 1:
        return Days(1, float(gaps[0]), float(gaps[0]), float(gaps[0]))
    q1, _, q3 = quantiles(gaps, n=4, method="inclusive")
    return Days(len(gaps), float(median(gaps)), q1, q3)

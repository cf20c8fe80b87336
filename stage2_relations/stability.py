"""How sure a written answer is, by re-reads with the worked examples in another order. The answer stays that of the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from configs.contracts import EntityFinding, EntityFlags, Reading, Relation, RelationMapper, Report, Unread
from stage2_relations.relate import Asked, LanguageModelMapper

__all__ = ["Agreement", "StabilityMapper", "with_agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the readings of a report, the first among them, state one thing: a key as present, or a relation."""

    n_stating: int
    n_readings: int

    def confidence(self, own: float | None) -> float:
        """The probability that the thing is so: the mean of the first reading's `own` and the share of readings that state it.

        Where that reading gives none, the share alone, smoothed by half a reading on either side: (k + 0.5) / (n + 1), since a few
        readings that agree are no certainty.
        """
        if own is None:
            return (self.n_stating + 0.5) / (self.n_readings + 1)
        return (own + self.n_stating / self.n_readings) / 2


class StabilityMapper:
    """A RelationMapper that says what `first` says, and how sure by what the others say of the same report.

    A report that `first` cannot read is Unread and not read again. A re-read that is Unread does not count; where all are, the
    first reading stands as it is. Of a LanguageModelMapper's reading only what the model was asked gets another confidence: a rule
    or a stage-1 flag that is the same in every reading is no agreement.
    """

    def __init__(self, first: RelationMapper, again: Sequence[RelationMapper]) -> None:
        """The mappers may share a model: each reads all reports before the next, so that a kept prompt serves them all."""
        self._first = first
        self._again = tuple(again)

    @property
    def token_counts(self) -> Mapping[str, int]:
        """Summed over all readings; a model that several mappers share counts its own tokens and is taken once."""
        counters: list[Mapping[str, int]] = [getattr(mapper, "token_counts", {}) for mapper in (self._first, *self._again)]
        total: dict[str, int] = {}
        for counts in {id(counter): counter for counter in counters}.values():
            for kind, n_tokens in counts.items():
                total[kind] = total.get(kind, 0) + n_tokens
        return total

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        """One result a report: that of the first mapper, other confidences apart."""
        firsts = self._first_readings(reports, flags)
        rows = [row for row, first in enumerate(firsts) if not isinstance(first, Unread)]
        rereads: dict[int, list[Reading]] = {row: [] for row in rows}
        for mapper in self._again if rows else ():
            again = mapper.relate([reports[row] for row in rows], [flags[row] for row in rows])
            for row, reading in zip(rows, again, strict=True):
                if isinstance(reading, Reading):
                    rereads[row].append(reading)
        return [
            first if isinstance(first, Unread) else with_agreement(first[0], rereads[row], asked=first[1])
            for row, first in enumerate(firsts)
        ]

    def _first_readings(
        self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]
    ) -> Sequence[tuple[Reading, Asked | None] | Unread]:
        if isinstance(self._first, LanguageModelMapper):
            return self._first.relate_asked(reports, flags)
        return [reading if isinstance(reading, Unread) else (reading, None) for reading in self._first.relate(reports, flags)]


def with_agreement(first: Reading, again: Sequence[Reading], *, asked: Asked | None = None) -> Reading:
    """`first` with the confidences that follow from `again`; `first` itself where `again` is empty.

    What is not `asked` keeps its confidence; None means that everything was.
    """
    if not again:
        return first
    readings = (first, *again)
    present = [{finding.key for finding in reading.entities if finding.present} for reading in readings]
    related = [{(relation.subject, relation.value) for relation in reading.relations} for reading in readings]

    def sure_finding(finding: EntityFinding) -> EntityFinding:
        if asked is not None and finding.key not in asked.keys:
            return finding
        agreement = Agreement(sum(finding.key in keys for keys in present), len(readings))
        return replace(finding, confidence=agreement.confidence(finding.confidence))

    def sure_relation(relation: Relation) -> Relation:
        pair = (relation.subject, relation.value)
        if asked is not None and relation.subject not in asked.keys and pair not in asked.relations:
            return relation
        agreement = Agreement(sum(pair in pairs for pairs in related), len(readings))
        return replace(relation, confidence=agreement.confidence(relation.confidence))

    return replace(first, entities=tuple(map(sure_finding, first.entities)), relations=tuple(map(sure_relation, first.relations)))

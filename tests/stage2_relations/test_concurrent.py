from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from configs.contracts import EntityFlags, Reading, Report, Unread
from stage2_relations.concurrent import ConcurrentMapper


class SlowMapper:
    """Says the report's id after a time that shrinks from report to report; "BUG" raises."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_now = self.n_most = self.n_begun = 0

    def relate(self, reports: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        [report], [flag] = reports, flags
        with self.lock:
            self.n_begun += 1
            self.n_now += 1
            self.n_most = max(self.n_most, self.n_now)
        time.sleep(0.02 if int(report.report_id) % 3 == 0 else 0.002)
        with self.lock:
            self.n_now -= 1
        if report.text == "BUG":
            raise ValueError("a bug")
        return [Unread(f"{report.report_id} {flag and flag.hinted}")]


def reports(n_reports: int, *, bug_at: int | None = None) -> list[Report]:
    return [Report(str(n), "BUG" if n == bug_at else "text") for n in range(n_reports)]


def test_results_come_in_order_with_their_own_flags_and_never_too_many_at_once() -> None:
    mapper = SlowMapper()
    flags = [EntityFlags({}, (f"key{n}",), ()) if n % 2 else None for n in range(24)]
    found = ConcurrentMapper(mapper, n_at_once=4).relate(reports(24), flags)
    assert found == SlowMapperAlone().relate(reports(24), flags)
    assert 2 <= mapper.n_most <= 4


class SlowMapperAlone:
    def relate(self, given: Sequence[Report], flags: Sequence[EntityFlags | None]) -> list[Reading | Unread]:
        return [SlowMapper().relate([report], [flag])[0] for report, flag in zip(given, flags, strict=True)]


def test_what_one_report_raises_is_raised_and_waiting_reports_are_left() -> None:
    mapper = SlowMapper()
    with pytest.raises(ValueError, match="a bug"):
        ConcurrentMapper(mapper, n_at_once=2).relate(reports(100, bug_at=1), [None] * 100)
    assert mapper.n_begun < 50
    assert mapper.n_now == 0

"""How far a run is, on standard error: a bar on a terminal, else a plain line every few seconds and at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from pipeline.tagging import Progress

LINE_EVERY_S = 5.0


@contextmanager
def shown_progress(stream: TextIO) -> Iterator[Progress]:
    """A Progress for `pipeline.tagging.tag_archive` that fits `stream`."""
    if not stream.isatty():
        yield LineProgress(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        yield BarProgress(bar)


class BarProgress:
    """A rich bar with reports a second and the time left."""

    def __init__(self, bar: RichProgress) -> None:
        self._bar = bar
        self._row = bar.add_task("tag", total=None, rate="reading the input")
        self._rate = _Rate()

    def warn(self, warning: str) -> None:
        """See pipeline.tagging.Progress."""
        self._bar.console.print(f"radtag: {warning}", markup=False, highlight=False, soft_wrap=True)

    def begin(self, *, n_reports: int, n_done: int) -> None:
        """See pipeline.tagging.Progress."""
        self._rate = _Rate(n_reports=n_reports, n_done=n_done)
        self._bar.reset(self._row, total=n_reports, completed=n_done, rate="")

    def advance(self, n_reports: int) -> None:
        """See pipeline.tagging.Progress."""
        self._rate.add(n_reports)
        self._bar.update(self._row, completed=self._rate.n_done, rate=f"{self._rate.reports_per_s():.1f} reports/s")


class LineProgress:
    """Plain lines for log files."""

    def __init__(self, stream: TextIO, *, every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._rate = _Rate()
        self._last = time.monotonic()

    def warn(self, warning: str) -> None:
        """See pipeline.tagging.Progress."""
        self._write(warning)

    def begin(self, *, n_reports: int, n_done: int) -> None:
        """See pipeline.tagging.Progress."""
        self._rate = _Rate(n_reports=n_reports, n_done=n_done)
        resumed = f", {n_done} of them in whole parts already" if n_done else ""
        self._write(f"{n_reports} reports{resumed}")

    def advance(self, n_reports: int) -> None:
        """See pipeline.tagging.Progress."""
        rate = self._rate
        rate.add(n_reports)
        if rate.n_done == rate.n_reports or time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            left = f", {rate.left_s():.0f} s left" if rate.n_done < rate.n_reports else ""
            self._write(f"{rate.n_done} of {rate.n_reports} reports, {rate.reports_per_s():.1f} a second{left}")

    def _write(self, line: str) -> None:
        self._stream.write(f"radtag: {line}\n")
        self._stream.flush()


class _Rate:
    def __init__(self, *, n_reports: int = 0, n_done: int = 0) -> None:
        self.n_reports = n_reports
        self.n_done = n_done
        self._n_before = n_done
        self._begin = time.monotonic()

    def add(self, n_reports: int) -> None:
        self.n_done += n_reports

    def reports_per_s(self) -> float:
        return (self.n_done - self._n_before) / max(time.monotonic() - self._begin, 1e-9)

    def left_s(self) -> float:
        return (self.n_reports - self.n_done) / max(self.reports_per_s(), 1e-9)

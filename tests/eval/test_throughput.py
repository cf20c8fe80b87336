"""The benchmark measures real runs of the sample archive and writes whole figures."""

from __future__ import annotations

import json
from pathlib import Path

from eval.throughput import measure, sample_reports, write_results


def test_throughput_is_measured_on_the_sample_archive(tmp_path: Path) -> None:
    reports = sample_reports("brain_mri")
    row = measure("brain_mri", "rules", reports, n_runs=2)
    assert (row.n_reports, row.n_runs) == (len(reports), 2) == (12, 2)
    assert row.reports_per_s > 0
    write_results([row], tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))[0]["system"] == "rules"

"""A run's figures for a monitoring system: Prometheus text format, one file that a node exporter's textfile collector reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.sinks import whole_file

LABEL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def prometheus_text(summary: Mapping[str, Any]) -> str:
    """The figures of a summary (`pipeline.tagging.Summary.as_object`); one that is not known is left out."""
    return "\n".join(_lines(summary)) + "\n"


def write_metrics(path: Path, summary: Mapping[str, Any]) -> None:
    """Whole or not at all, readable by others than the owner as far as the umask allows. Raises SinkError."""
    with whole_file(path) as temporary:
        temporary.write_text(prometheus_text(summary), encoding="utf-8")


def _lines(summary: Mapping[str, Any]) -> Iterator[str]:
    run = {"task": summary["task"], "system": summary["system"]}

    def metric(name: str, kind: str, said: str, values: Mapping[str, Any], label: str | None = None) -> Iterator[str]:
        known = {key: value for key, value in values.items() if value is not None}
        if known:
            yield f"# HELP radtag_{name} {said}"
            yield f"# TYPE radtag_{name} {kind}"
        for key, value in known.items():
            yield f"radtag_{name}{_labels(run | ({label: key} if label else {}))} {value}"

    yield from metric("run_finished", "gauge", "1 when every report of the run has its record.", {"": int(summary["finished"])})
    yield from metric("reports", "gauge", "Reports of the input.", {"": summary["n_reports"]})
    yield from metric("records", "gauge", "Records written, of this start and earlier ones.", summary["counts"], "status")
    yield from metric("reports_resumed", "gauge", "Reports whose records stood before this start.", {"": summary["n_resumed"]})
    yield from metric("reports_read", "gauge", "Reports that went through the stages in this start.", {"": summary["n_read"]})
    yield from metric("reports_per_second", "gauge", "Reports a second in this start.", {"": summary["reports_per_s"]})
    yield from metric("stage_seconds", "gauge", "Wall time of the stages, summed over workers.", summary["stage_seconds"], "stage")
    yield from metric("step_seconds", "gauge", "Wall time of the run's steps.", summary["step_seconds"], "step")
    yield from metric("tokens", "gauge", "Tokens of the stages that count them.", summary["tokens"], "kind")
    yield from metric("seconds", "gauge", "Wall time of this start.", {"": summary["seconds"]})
    yield from metric("peak_memory_bytes", "gauge", "Largest process.", {"": summary["peak_memory_mib"] * 2**20})


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value.translate(LABEL_ESCAPES)}"' for name, value in labels.items()) + "}"


def metrics_problem(path: Path) -> str | None:
    """Why no metrics file can be written at `path`, or None; so that a long run does not find out at its end."""
    if path.is_dir():
        return f"{path}: is a folder; a file is expected"
    if not path.parent.is_dir():
        return f"{path.parent}: does not exist"
    return None if os.access(path.parent, os.W_OK) else f"{path.parent}: cannot be written"

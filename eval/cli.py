"""`radtag eval`: metrics of records against annotated reports."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure records against annotated reports.", no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Measure records against annotated reports."""


@app.command()
def score(
    gold: Annotated[Path, typer.Argument(help="Annotated reports, JSON Lines with report_id and labels.")],
    records: Annotated[
        list[Path], typer.Argument(help="Run directories or JSON Lines files of records; one row of the table each.")
    ],
    task: Annotated[str, typer.Option("--task", help="Task name or task file.")],
) -> None:
    """Score records that already exist: keys and pairs, published and micro figures, in percent; undefined is –."""
    from configs.schema import ConfigError, load_task
    from eval.gold import GoldError, pair_up, read_gold, read_predictions
    from eval.score import score as score_pairs

    try:
        loaded = load_task(task)
        labels = read_gold(gold, loaded)
        rows = [(path, score_pairs(loaded, pair_up(labels, read_predictions(path, loaded)))) for path in records]
    except (ConfigError, GoldError) as error:
        print(f"radtag: {error}", file=sys.stderr)
        raise typer.Exit(2) from None

    header = [
        "records",
        "n",
        "failed",
        "keys acc",
        "keys F1",
        "keys micro",
        "keys macro",
        "specificity",
        "pairs F1",
        "pairs acc",
        "pairs micro",
        "expanded",
    ]
    table = [
        [path.name, str(s.n_reports), str(s.n_failed)]
        + [percent(x) for x in (s.keys.accuracy, s.keys.f1, s.key_micro_f1, s.key_macro_f1, s.keys.specificity)]
        + [percent(x) for x in (s.pair_macro_f1, s.pair_macro_accuracy, s.pair_micro_f1, s.pair_micro_f1_expanded)]
        for path, s in rows
    ]
    widths = [max(len(row[i]) for row in [header, *table]) for i in range(len(header))]
    for row in [header, *table]:
        print(
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


@app.command()
def throughput(
    out: Annotated[Path, typer.Option("--out", help="Where to write the figures as JSON.")] = Path("bench/results.json"),
) -> None:
    """Reports a second of every system on the sample archive, one thread (what `make bench` runs)."""
    from eval.throughput import measure_all, write_results

    rows = measure_all()
    print(f"{'task':<10} {'system':<16} {'n':>3} {'reports/s':>10} {'cpu s a report':>15}")
    for row in rows:
        print(f"{row.task:<10} {row.system:<16} {row.n_reports:>3} {row.reports_per_s:>10.2f} {row.cpu_s_a_report:>15.4f}")
    write_results(rows, out)
    print(f"written to {out}")


def percent(fraction: float) -> str:
    """`93.4` for 0.934, `–` for nan."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"

"""`radtag eval`: metrics of systems and records against annotated reports. Heavy imports live in the command that needs them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.model_options import (
    Adapter,
    GpuLayers,
    HttpConcurrency,
    ModelFile,
    NoAdapter,
    ReadBy,
    Server,
    ServerModel,
    ServerPlain,
    ServerTimeout,
)

if TYPE_CHECKING:
    from pipeline.tagging import Progress

EXIT_SOME_ROWS_FAILED = 1
EXIT_USAGE = 2

app = typer.Typer(help="Measure records against annotated reports.", no_args_is_help=True, add_completion=False)

Gold = Annotated[Path, typer.Argument(help="Annotated reports, JSON Lines with report_id and labels.")]
TaskOption = Annotated[str, typer.Option("--task", help="Task name or task file.")]


@app.callback()
def group() -> None:
    """Measure records against annotated reports."""


@app.command()
def run(
    gold: Annotated[
        Path, typer.Argument(help="Annotated reports, JSON Lines with report_id and labels; with text where a system tags them.")
    ],
    task: TaskOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="For report.html, results.json, tables, figures and records.")],
    systems: Annotated[
        str,
        typer.Option(
            "--systems",
            metavar="LIST",
            help="Of published-rules, rules, encoder, llm, two-stage and NAME=RECORDS (a run directory, .jsonl, .parquet).",
        ),
    ] = "published-rules,rules,encoder,two-stage",
    encoder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Stage-1 weights; without it those of the task.")] = None,
    model: ModelFile = None,
    gpu_layers: GpuLayers = 0,
    adapter: Adapter = None,
    no_adapter: NoAdapter = False,
    read: ReadBy = None,
    server: Server = None,
    server_model: ServerModel = None,
    server_plain: ServerPlain = False,
    server_timeout: ServerTimeout = 120.0,
    http_concurrency: HttpConcurrency = 1,
    threads: Annotated[int, typer.Option(min=1, envvar="RADTAG_THREADS", help="Threads a worker.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads its own stages.")] = 1,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
) -> None:
    """Compare systems on annotated reports: tests, figures, errors in the text.

    Records are kept in DIR/records: the same system on the same texts tags nothing twice. Exit code 1 when rows failed.
    """
    with _one_line_errors():
        from configs.schema import load_task
        from eval.gold import read_gold_reports
        from eval.run import run_evaluation, write_evaluation
        from eval.systems import ModelReading, parse_systems
        from eval.verdict import verdict

        loaded = load_task(task)
        reports = read_gold_reports(gold, loaded)
        reading = ModelReading(
            adapter=adapter,
            no_adapter=no_adapter,
            read=read,
            server=server,
            server_model=server_model,
            server_plain=server_plain,
            server_timeout_s=server_timeout,
            http_concurrency=http_concurrency,
        )
        chosen = parse_systems(
            systems, task=task, encoder=encoder, model=model, gpu_layers=gpu_layers, reading=reading, threads=threads
        )
        with ExitStack() as bars:
            results = run_evaluation(
                loaded,
                reports,
                chosen,
                out=out,
                gold_name=gold.name,
                n_resamples=resamples,
                workers=workers,
                progress=lambda name: _named_progress(name, bars),
            )
        page, _ = write_evaluation(results, out)
        found = verdict(results)
        for sentence in (*found.best, *(sentence for sentence, _ in found.comparisons), found.weakness, *results.notes):
            print(sentence)
        print(f"report   {page}")
        if any(system.score.n_failed for system in results.systems):
            raise typer.Exit(EXIT_SOME_ROWS_FAILED)


@app.command()
def score(
    gold: Gold,
    records: Annotated[
        list[Path], typer.Argument(help="Run directories or JSON Lines files of records; one row of the table each.")
    ],
    task: TaskOption,
) -> None:
    """Score records that already exist: keys and pairs, published and micro figures, in percent; undefined is –."""
    with _one_line_errors():
        from configs.schema import load_task
        from eval.gold import pair_up, read_gold, read_predictions
        from eval.score import score as score_pairs

        loaded = load_task(task)
        labels = read_gold(gold, loaded)
        rows = [(path, score_pairs(loaded, pair_up(labels, read_predictions(path, loaded)))) for path in records]
    header = [
        *("records", "n", "failed", "keys acc", "keys F1", "keys micro", "keys macro", "specificity"),
        *("pairs F1", "pairs acc", "pairs micro", "expanded"),
    ]
    _print_table(
        header,
        [
            [path.name, str(s.n_reports), str(s.n_failed)]
            + [percent(x) for x in (s.keys.accuracy, s.keys.f1, s.key_micro_f1, s.key_macro_f1, s.keys.specificity)]
            + [percent(x) for x in (s.pair_macro_f1, s.pair_macro_accuracy, s.pair_micro_f1, s.pair_micro_f1_expanded)]
            for path, s in rows
        ],
        n_text=1,
    )


@app.command()
def agreement(
    first: Annotated[Path, typer.Argument(help="Annotated reports, JSON Lines with report_id and labels.")],
    second: Annotated[Path, typer.Argument(help="The same reports by another annotator.")],
    task: TaskOption,
) -> None:
    """Agreement of two annotators: Cohen's kappa for each key and each subject's values; undefined is –."""
    with _one_line_errors():
        from configs.schema import load_task
        from eval.agreement import annotator_agreement
        from eval.gold import read_gold

        loaded = load_task(task)
        rows = annotator_agreement(loaded, read_gold(first, loaded), read_gold(second, loaded))
    _print_table(
        ["decision", "n", "first yes", "second yes", "agree %", "kappa", "95 % interval"],
        [
            [
                row.name,
                str(row.kappa.n_decisions),
                str(row.n_first),
                str(row.n_second),
                percent(row.kappa.n_agreed / row.kappa.n_decisions if row.kappa.n_decisions else math.nan),
                _decimals(row.kappa.kappa),
                "–"
                if math.isnan(row.kappa.kappa)
                else f"{_decimals(row.kappa.interval.low)} to {_decimals(row.kappa.interval.high)}",
            ]
            for row in rows
        ],
        n_text=1,
    )


@app.command()
def benchmark(
    name: Annotated[str, typer.Argument(metavar="ctrate|openi|negex", help="Which public data set.")],
    file: Annotated[Path, typer.Argument(help="Its file as published: train.csv, indiana_reports.csv, rsAnnotations….txt.")],
    systems: Annotated[
        str,
        typer.Option(
            "--systems", metavar="LIST", help="Of published-rules, rules, encoder, encoders, llm, two-stage and NAME=RECORDS."
        ),
    ] = "published-rules,rules,encoder,two-stage",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="For tables, a report of every subset and the records; holds text.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=1, help="Write training files of so many folds to --out instead; 1: all of FILE is for training."),
    ] = None,
    add_training: Annotated[
        Path | None, typer.Option(metavar="JSONL", help="With --folds: annotated reports that every fold also trains on.")
    ] = None,
    finetune_settings: Annotated[
        Path | None, typer.Option(metavar="YAML", help="With --folds: fine-tuning settings; without it those of the task.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of trained folds: each report is read by the fold that left it out.")
    ] = None,
    encoder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Stage-1 weights; without it those of the task.")] = None,
    model: ModelFile = None,
    gpu_layers: GpuLayers = 0,
    adapter: Adapter = None,
    no_adapter: NoAdapter = False,
    read: ReadBy = None,
    server: Server = None,
    server_model: ServerModel = None,
    server_plain: ServerPlain = False,
    server_timeout: ServerTimeout = 120.0,
    http_concurrency: HttpConcurrency = 1,
    threads: Annotated[int, typer.Option(min=1, envvar="RADTAG_THREADS", help="Threads a worker.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads its own stages.")] = 1,
) -> None:
    """Measure systems on a public data set that you downloaded.

    Prints a table of its mapped keys (openi: pairs too; negex: negation) and what the mapping cannot show. Exit code 1 when
    rows failed.
    """
    with _one_line_errors(), ExitStack() as bars:
        from eval.benchmark_session import BenchmarkOptions, run_session
        from eval.systems import ModelReading

        options = BenchmarkOptions(
            systems=systems,
            out=out,
            folds=folds,
            add_training=add_training,
            finetune_settings=finetune_settings,
            weights=weights,
            encoder=encoder,
            model=model,
            gpu_layers=gpu_layers,
            reading=ModelReading(
                adapter=adapter,
                no_adapter=no_adapter,
                read=read,
                server=server,
                server_model=server_model,
                server_plain=server_plain,
                server_timeout_s=server_timeout,
                http_concurrency=http_concurrency,
            ),
            threads=threads,
            workers=workers,
        )
        session = run_session(name, file, options, progress=lambda shown: _named_progress(shown, bars))
    if session.table is not None:
        print(f"{session.table.title}\n")
        _print_table(session.table.header, session.table.rows, n_text=session.table.n_text)
        print()
    for line in (*session.notes, *session.next_steps):
        print(line)
    if session.n_failed:
        raise typer.Exit(EXIT_SOME_ROWS_FAILED)


@app.command("results")
def results_page(
    out: Annotated[Path, typer.Option("--out", metavar="MD", help="The page.")] = Path("docs/RESULTS.md"),
    figures: Annotated[Path, typer.Option("--json", metavar="JSON", help="Its figures.")] = Path("docs/results.json"),
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="Holds TASK/SPLIT.jsonl.")] = Path("training/corpus"),
    records: Annotated[
        Path, typer.Option(metavar="DIR", help="Records are kept here, nothing is tagged twice; holds report text.")
    ] = Path("runs/results"),
    tasks: Annotated[str, typer.Option(metavar="LIST", help="Task names.")] = "chest_ct,brain_mri",
    splits: Annotated[
        str, typer.Option(metavar="LIST", help="Each is measured, then all of them together.")
    ] = "test,test_hard,test_fresh,test_sealed",
    systems: Annotated[
        str, typer.Option(metavar="LIST", help="Systems, as 'radtag eval run' takes them.")
    ] = "published-rules,rules,encoder,encoders,llm,two-stage",
    render_only: Annotated[bool, typer.Option("--render-only", help="Write the page from the JSON file that is there.")] = False,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    gpu_layers: GpuLayers = 0,
    threads: Annotated[int, typer.Option(min=1, envvar="RADTAG_THREADS", help="Threads a worker.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads its own stages.")] = 1,
) -> None:
    """Measure every system on the shipped corpus and write the results page (what `make results` runs).

    Exit code 1 when rows failed.
    """
    with _one_line_errors(), ExitStack() as bars:
        from eval.results_page import PageRequest, measure, n_failed, render_page, write_results_page

        if render_only:
            render_page(figures, out)
            print(f"page     {out}")
            return
        request = PageRequest(
            corpus=corpus,
            records=records,
            tasks=_listed(tasks, "--tasks"),
            splits=_listed(splits, "--splits"),
            systems=systems,
            n_resamples=resamples,
            threads=threads,
            workers=workers,
            gpu_layers=gpu_layers,
        )
        found = measure(request, progress=lambda name: _named_progress(name, bars))
        write_results_page(found, out, figures)
    print(f"page     {out}\nfigures  {figures}")
    if failed := n_failed(found):
        print(f"radtag: {failed} rows have no answer and count as wrong everywhere", file=sys.stderr)
        raise typer.Exit(EXIT_SOME_ROWS_FAILED)


@app.command()
def throughput(
    out: Annotated[Path, typer.Option("--out", help="Where to write the figures as JSON.")] = Path("bench/results.json"),
    page: Annotated[Path, typer.Option("--page", help="Where to write the page; its picture goes beside it.")] = Path(
        "docs/PERFORMANCE.md"
    ),
    plan: Annotated[
        str,
        typer.Option(
            metavar="quick|archives|long",
            help="archives: 100,000 reports through rules and encoder too, an hour; long: both tasks, whole dev split, hours.",
        ),
    ] = "quick",
    task: Annotated[str | None, typer.Option("--task", help="This task alone; without it those of the plan.")] = None,
) -> None:
    """Every stage and system timed side by side, one thread (what `make bench` runs): about 5 minutes on a quiet machine."""
    with _one_line_errors():
        from configs.yaml_lines import did_you_mean
        from eval.bench_archives import ArchiveRunError
        from eval.bench_langextract import ServerStartError
        from eval.bench_page import write_page
        from eval.gold import GoldError
        from eval.throughput import PLANS, run_bench, write_results

        if plan not in PLANS:
            raise GoldError(f"plan '{plan}' is not known{did_you_mean(plan, PLANS)}")
        chosen = PLANS[plan] if task is None else replace(PLANS[plan], tasks=(task,))
        try:
            results = run_bench(chosen, tell=lambda line: print(line, file=sys.stderr, flush=True))
        except (ArchiveRunError, ServerStartError) as error:
            print(f"radtag: {error}", file=sys.stderr)
            raise typer.Exit(EXIT_USAGE) from None
        write_results(results, out)
        write_page(results, page)
    for goal in results["goals"]:
        found = "not measured" if goal["found"] is None else f"{goal['found']:.3g}"
        print(f"{goal['goal']:<70} {goal['sign']} {goal['wanted']:<5g} {found}")
    print(f"written to {out} and {page}")


def percent(fraction: float) -> str:
    """`93.4` for 0.934, `–` for nan."""
    return "–" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _listed(given: str, option: str) -> tuple[str, ...]:
    """`a,b` as names. Raises GoldError for an empty or repeated one."""
    from eval.gold import GoldError

    names = tuple(part.strip() for part in given.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise GoldError(f"{option} '{given}' holds an empty or repeated name; different names are expected, as in 'a,b'")
    return names


def _decimals(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) if i < n_text else cell.rjust(width) for i, (cell, width) in enumerate(cells)))


def _named_progress(name: str, bars: ExitStack) -> Progress:
    from pipeline.progress import shown_progress

    bars.close()  # the bar of the system before
    print(f"radtag: {name}", file=sys.stderr)
    return bars.enter_context(shown_progress(sys.stderr))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What a user can put right ends with one line and exit code 2, also where this group is called without `radtag`."""
    from eval.gold import GoldError
    from pipeline.command_group import USER_ERRORS

    try:
        yield
    except Exception as error:
        known = [getattr(sys.modules[module], name) for module, name in USER_ERRORS if module in sys.modules]
        if not isinstance(error, (GoldError, *known)):
            raise
        print(f"radtag: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None

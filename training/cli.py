"""`radtag train …`: makes the weights of both stages. Heavy imports live in the command that needs them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from training.loop import Progress

app = typer.Typer(help="Make the weights: tokenizer, pre-training, fine-tuning, adapter.", no_args_is_help=True)
RUNS_FOLDER = Path("runs")
LINE_EVERY_S = 20.0

Config = Annotated[Path, typer.Argument(help="Training YAML, for example configs/training/finetune_chest_ct.yaml.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/<name of the YAML> when it is not given.")]
Replace = Annotated[bool, typer.Option("--replace", help="Also where the folder of the settings is one that ships with radtag.")]


@app.command()
def tokenizer(config: Config, out: Out = None) -> None:
    """Learn the tokenizer from the training reports of all tasks."""
    with _one_line_errors():
        from training.settings import TokenizerSettings, read_settings
        from training.train_tokenizer import train_tokenizer

        folder = _run_folder(config, out)
        figures = train_tokenizer(read_settings(config, TokenizerSettings), folder)
        print(f"{folder}/tokenizer.json: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


@app.command()
def tokenizer_report(
    config: Annotated[Path, typer.Argument(help="The YAML of the tokenizer, for example tokenizer.yaml.")],
) -> None:
    """Compare the tokenizer with others on the dev reports: tokens a word and a Hangul syllable, losses, speed."""
    with _one_line_errors():
        from training.settings import TokenizerSettings, read_settings
        from training.tokenizer_report import table
        from training.tokenizer_report import tokenizer_report as run

        print("\n".join(table(run(read_settings(config, TokenizerSettings)))))


@app.command()
def pretrain(config: Config, out: Out = None) -> None:
    """Train the body on masked tokens. Goes on from the run folder's checkpoint when there is one."""
    with _one_line_errors():
        from training.pretrain import pretrain as run
        from training.settings import PretrainSettings, read_settings

        folder = _run_folder(config, out)
        with _progress() as progress:
            result = run(read_settings(config, PretrainSettings), folder, progress=progress)
        best = result.history[result.best_epoch - 1]
        print(f"{folder}: best epoch {result.best_epoch}, dev loss {best['dev_loss']:.3f}, {result.seconds_s / 60:.1f} min")


@app.command()
def finetune(config: Config, out: Out = None, replace: Replace = False) -> None:
    """Train the flags of one task and write its weights folder. Goes on from the run folder's checkpoint when there is one."""
    with _one_line_errors():
        from stage1_encoder.pair_encoder import has_pairs
        from training.finetune import finetune as run
        from training.settings import FinetuneSettings, read_settings
        from training.weights_folder import refuse_shipped

        settings = read_settings(config, FinetuneSettings)
        refuse_shipped(settings.weights, setting="weights", replace=replace)
        had_pairs = has_pairs(settings.weights)
        with _progress() as progress:
            result = run(settings, _run_folder(config, out), progress=progress)
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        figures = result.figures
        print(
            f"{settings.weights}: dev n={figures.n_dev}, micro F1 {figures.decision['micro_f1']:.3f}, "
            f"macro F1 {figures.decision['macro_f1']:.3f}, exact set {figures.decision['exact_set']:.3f}, "
            f"hint recall {figures.hint['recall']:.3f}, {result.loop.seconds_s / 60:.1f} min"
        )
        if had_pairs:
            print(
                f"{settings.weights}: its pair encoder was of the old weights and is gone. Next: radtag train pairs, then combine"
            )


@app.command()
def pairs(config: Config, out: Out = None, replace: Replace = False) -> None:
    """Train the pair encoder of one task from its flag weights. Goes on from the run folder's checkpoint when there is one."""
    with _one_line_errors():
        from stage1_encoder.pair_encoder import PAIRS_FILE
        from training.pairs import train_pairs
        from training.settings import PairSettings, read_settings
        from training.weights_folder import refuse_shipped

        settings = read_settings(config, PairSettings)
        refuse_shipped(settings.weights / PAIRS_FILE, setting="weights", replace=replace)
        with _progress() as progress:
            result = train_pairs(settings, _run_folder(config, out), progress=progress)
        for warning in result.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(
            f"{settings.weights}: dev {result.figures['n_questions']:.0f} questions, average precision "
            f"{result.figures['average_precision']:.3f}, micro F1 {result.figures['micro_f1']:.3f}, "
            f"{result.loop.seconds_s / 60:.1f} min. Next: radtag train combine"
        )


@app.command()
def adapter(config: Config, out: Out = None, replace: Replace = False) -> None:
    """Train a LoRA adapter of the language model for one task. Goes on from the run folder's checkpoint when there is one."""
    with _one_line_errors():
        from training.adapter import train_adapter
        from training.settings import AdapterSettings, read_settings
        from training.weights_folder import refuse_shipped

        settings = read_settings(config, AdapterSettings)
        refuse_shipped(settings.adapter, setting="adapter", replace=replace)
        with _progress() as progress:
            result = train_adapter(settings, _run_folder(config, out), progress=progress)
        best, agreement = result.loop.history[result.loop.best_epoch - 1], result.agreement
        print(
            f"{settings.adapter}: {result.n_bytes / 1e6:.1f} MB, dev average precision {best['score']:.3f}, "
            f"micro F1 {best['dev_micro_f1']:.3f}, {result.loop.seconds_s / 60:.1f} min; llama.cpp as torch in "
            f"{agreement.same_side:.1%} of {agreement.n_clear} clear answers (n={agreement.n_reports} reports); "
            f"{result.n_left_out} reports too long for training. Next: radtag train combine {config}"
        )


@app.command()
def combine(
    config: Annotated[Path, typer.Argument(help="The YAML of the adapter, for example adapter_chest_ct.yaml.")],
    replace: Replace = False,
) -> None:
    """Fit the weights that combine stage 1, the adapter and the rules, on the dev split; writes combine.json beside the adapter."""
    with _one_line_errors():
        from stage2_relations.combine import COMBINE_FILE
        from training.combine import combine as run
        from training.settings import AdapterSettings, read_settings
        from training.weights_folder import refuse_shipped

        settings = read_settings(config, AdapterSettings)
        refuse_shipped(settings.adapter / COMBINE_FILE, setting="adapter", replace=replace)
        result = run(settings)
        print(
            f"{settings.adapter}: combine.json fitted on {result.n_presence} entity answers, {result.n_relations} relation answers"
        )


@app.command()
def distill(
    archive: Annotated[
        str, typer.Argument(metavar="ARCHIVE", help="A .csv, .jsonl (also .gz) or .parquet file, a folder or a quoted glob.")
    ],
    task: Annotated[str, typer.Option(help="A known task (see 'radtag tasks') or the path of a task file.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="New corpus file.")],
    model: Annotated[Path | None, typer.Option(metavar="GGUF", help="The stronger model's file.")] = None,
    gpu_layers: Annotated[int, typer.Option(help="Layers of the model on the GPU; -1 means all.")] = 0,
    server: Annotated[str | None, typer.Option(metavar="URL", help="An OpenAI-compatible server that runs the model.")] = None,
    server_model: Annotated[str | None, typer.Option(metavar="NAME", help="What the server calls its model.")] = None,
    server_plain: Annotated[bool, typer.Option("--server-plain", help="Send the server standard fields only, no grammar.")] = False,
    server_timeout: Annotated[float, typer.Option(help="Seconds that the server has for an answer.")] = 120.0,
    http_concurrency: Annotated[int, typer.Option(min=1, help="Reports on their way to the server at once.")] = 1,
    min_confidence: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Of everything said of a report; 0 also takes answers without probabilities.")
    ] = 0.9,
    records: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the model's records, from which a stopped run goes on; FILE.jsonl.records."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again for the failed reports of that folder.")] = False,
    where: Annotated[list[str] | None, typer.Option(metavar="CONDITION", help="Only rows such as 'modality = CT'.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many reports, the first ones that fit.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; each loads its own model.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, envvar="RADTAG_THREADS", help="Threads a worker.")] = None,
    id_column: Annotated[str, typer.Option(help="Column of the report ids, each once.")] = "report_id",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    patient_column: Annotated[str | None, typer.Option(help="Column of the patient ids; 'patient_id' where there is one.")] = None,
    date_column: Annotated[str | None, typer.Option(help="Column of the study dates; 'date' where there is one.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV and JSON Lines: utf-8, cp949, euc-kr, shift_jis, …")] = "utf-8",
) -> None:
    """Label unannotated reports with a stronger model, and keep the answers that are grounded and sure; writes a corpus file."""
    with _one_line_errors():
        from pipeline.progress import shown_progress
        from pipeline.settings import free_cores
        from pipeline.sources import Columns
        from pipeline.tagging import TagRequest
        from training.distill import distill as run
        from training.distill import dropped_text, teacher_settings

        teacher = teacher_settings(
            task=task,
            model=model,
            gpu_layers=gpu_layers,
            server=server,
            server_model=server_model,
            server_plain=server_plain,
            server_timeout_s=server_timeout,
            http_concurrency=http_concurrency,
            threads=threads or max(1, free_cores() // workers),
        )
        columns = Columns(id_column, text_column, patient_column, date_column)
        folder = records or out.with_name(out.name + ".records")
        request = TagRequest(
            archive,
            columns,
            teacher,
            folder,
            encoding,
            resume=True,
            retry_failed=retry_failed,
            workers=workers,
            where=tuple(where or ()),
            limit=limit,
        )
        try:
            with shown_progress(sys.stderr) as progress:
                result = run(request, out, min_confidence=min_confidence, progress=progress)
        except KeyboardInterrupt:
            print("radtag train: stopped; the same command goes on from the parts written so far", file=sys.stderr)
            raise typer.Exit(130) from None
        print(
            f"{out}: {result.n_kept} of {result.n_reports} reports, {result.n_without_findings} of them without findings; "
            f"{dropped_text(result)}"
        )
        if result.dropped["failed"] or result.dropped["rejected"]:
            raise typer.Exit(1)


@app.command()
def weak_label(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help=".csv, .jsonl (.gz) or .parquet: a file, a folder or a glob.")],
    task: Annotated[str, typer.Option(help="Name of a task, or a task file.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="New annotation file.")],
    id_column: Annotated[str, typer.Option(help="Column of the report ids, each once.")] = "report_id",
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    patient_column: Annotated[str | None, typer.Option(help="Column of the patient ids; 'patient_id' where there is one.")] = None,
    date_column: Annotated[str | None, typer.Option(help="Column of the study dates; 'date' where there is one.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV and JSON Lines: utf-8, cp949, euc-kr, shift_jis, …")] = "utf-8",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many reports.")] = None,
) -> None:
    """Label an archive by the task's keywords, negation and history read, for `weak_labels` of fine-tuning."""
    with _one_line_errors():
        from configs.schema import load_task
        from pipeline.progress import shown_progress
        from pipeline.sinks import SinkError
        from pipeline.source_files import SourceError, known_encoding
        from pipeline.sources import Columns, FileSource, find_files, would_find
        from training.weak_label import weak_label as run

        if Path(archive).is_dir() and out.resolve().is_relative_to(Path(archive).resolve()):
            raise SourceError(f"{out}: lies inside the input folder {archive}; give --out a place beside it")
        for written in (out, out.with_name(out.name + ".unusable.jsonl")):
            if written.exists():
                raise SinkError(f"{written}: exists already; a new file is expected")
            if would_find(archive, written):
                raise SourceError(f"{written}: would be input of the next start ({archive}); give --out a place beside it")
        columns = Columns(id_column, text_column, patient_column, date_column)
        source = FileSource(find_files(archive), columns, known_encoding(encoding), limit=limit)
        with shown_progress(sys.stderr) as progress:
            counts = run(
                source,
                load_task(task),
                out,
                begin=lambda n_reports: progress.begin(n_reports=n_reports, n_done=0),
                advance=progress.advance,
            )
        print(f"{out}: {counts.n_labelled} reports, {counts.n_empty} of them with no finding")
        for key, n_present in counts.n_present.items():
            print(f"  {key:<28} {n_present:>8}")
        if counts.unusable is not None:
            print(f"radtag train: {counts.n_unusable} rows could not be used; {counts.unusable} names them", file=sys.stderr)
            raise typer.Exit(1)


def _run_folder(config: Path, out: Path | None) -> Path:
    return out if out is not None else RUNS_FOLDER / config.stem


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line every 20 seconds and at the end of an epoch."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task("training")

        def advance(progress: Progress) -> None:
            description = f"epoch {progress.epoch + 1} loss {progress.loss:.3f}"
            bar.update(row, completed=progress.step, total=progress.n_steps, description=description)
            if progress.dev is not None:
                bar.console.print(_describe(progress), highlight=False)

        yield advance


def _lines() -> Callable[[Progress], None]:
    last_s = time.monotonic()

    def line(progress: Progress) -> None:
        nonlocal last_s
        if progress.dev is None and time.monotonic() - last_s < LINE_EVERY_S:
            return
        last_s = time.monotonic()
        print(_describe(progress), file=sys.stderr, flush=True)

    return line


def _describe(progress: Progress) -> str:
    dev = "" if progress.dev is None else "".join(f" {name} {value:.4f}" for name, value in progress.dev.items())
    place = f"step {progress.step}/{progress.n_steps} epoch {progress.epoch + 1}"
    return f"{place} loss {progress.loss:.4f} {progress.examples_per_s:.1f} examples/s{dev}"


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns the expected errors into one line and exit code 2, a stop by the user into exit code 1."""
    try:
        yield
    except Exception as error:
        from configs.schema import ConfigError
        from pipeline.sinks import SinkError
        from pipeline.source_files import SourceError
        from stage1_encoder.checkpoint import CheckpointError
        from stage1_encoder.encoder import EncoderError
        from stage1_encoder.tokenizer import TokenizerError
        from stage2_relations.language_model import LanguageModelError
        from stage2_relations.model_file import ModelFileError
        from training.corpus import CorpusError
        from training.loop import TrainingError, TrainingStopped

        if isinstance(error, TrainingStopped):
            print(error, file=sys.stderr)
            raise typer.Exit(1) from None
        if isinstance(
            error,
            ConfigError
            | CheckpointError
            | EncoderError
            | TokenizerError
            | ModelFileError
            | LanguageModelError
            | CorpusError
            | TrainingError
            | SourceError
            | SinkError,
        ):
            print(f"radtag train: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        raise

"""`radtag train …`: makes the encoder's weights. Heavy imports live in the command that needs them."""

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

app = typer.Typer(help="Make the weights: tokenizer, pre-training, fine-tuning.", no_args_is_help=True)
RUNS_FOLDER = Path("runs")
LINE_EVERY_S = 20.0

Config = Annotated[Path, typer.Argument(help="Training YAML, for example configs/training/finetune_chest_ct.yaml.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder; runs/<name of the YAML> when it is not given.")]


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
def finetune(config: Config, out: Out = None) -> None:
    """Train the flags of one task and write its weights folder. Goes on from the run folder's checkpoint when there is one."""
    with _one_line_errors():
        from training.finetune import finetune as run
        from training.settings import FinetuneSettings, read_settings

        settings = read_settings(config, FinetuneSettings)
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
        from stage1_encoder.checkpoint import CheckpointError
        from stage1_encoder.encoder import EncoderError
        from stage1_encoder.tokenizer import TokenizerError
        from training.corpus import CorpusError
        from training.loop import TrainingError, TrainingStopped

        if isinstance(error, TrainingStopped):
            print(error, file=sys.stderr)
            raise typer.Exit(1) from None
        if isinstance(error, ConfigError | CheckpointError | EncoderError | TokenizerError | CorpusError | TrainingError):
            print(f"radtag train: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        raise

"""What `radtag eval benchmark` does: load, tag and measure; or write the training files of folds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from configs.yaml_lines import ConfigError
from eval.benchmarks import benchmark_table, load_benchmark, run_benchmark, write_benchmark
from eval.folds import run_with_folds, write_folds
from eval.negex import run_negex
from eval.public_sets import ALL, Benchmark, check_name, read_mapping
from eval.systems import ModelReading, System, parse_systems
from eval.tables import Table, write_tables
from pipeline.tagging import Progress


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """The options of the command."""

    systems: str
    out: Path | None = None
    folds: int | None = None
    add_training: Path | None = None
    finetune_settings: Path | None = None
    weights: Path | None = None
    encoder: Path | None = None
    model: Path | None = None
    gpu_layers: int = 0
    reading: ModelReading = field(default_factory=ModelReading)
    threads: int = 1
    workers: int = 1

    def chosen(self, task: str) -> list[System]:
        """The systems for a task. With `weights` the encoder comes from each fold."""
        return parse_systems(
            self.systems,
            task=task,
            encoder=self.encoder,
            model=self.model,
            gpu_layers=self.gpu_layers,
            reading=self.reading,
            threads=self.threads,
        )


@dataclass(frozen=True, slots=True)
class Session:
    """What is printed; `table` is None where only files were written."""

    table: Table | None
    notes: tuple[str, ...]
    next_steps: tuple[str, ...] = ()
    n_failed: int = 0


def run_session(name: str, file: Path, options: BenchmarkOptions, *, progress: Callable[[str], Progress] | None = None) -> Session:
    """Raises GoldError, ConfigError, SettingsError and what tagging raises."""
    check_name(name)
    _check_options(name, options)
    if name == "negex":
        return _negex(file, options, progress)
    benchmark = load_benchmark(name, file)
    if options.folds is not None and options.out is not None:
        return _written_folds(name, file, benchmark, options.out, options)
    with ExitStack() as stack:
        out = options.out or Path(stack.enter_context(TemporaryDirectory(prefix="radtag-benchmark-")))
        chosen = options.chosen(benchmark.task.name)
        if options.weights is None:
            results = run_benchmark(benchmark, chosen, out=out, workers=options.workers, progress=progress)
        else:
            results = run_with_folds(benchmark, chosen, options.weights, out=out, workers=options.workers, progress=progress)
        pages = write_benchmark(benchmark, results, out) if options.out is not None else []
    return Session(
        benchmark_table(benchmark, results),
        benchmark.notes,
        tuple(f"report   {page}" for page in pages),
        n_failed=sum(system.score.n_failed for system in results[ALL].systems),
    )


def _check_options(name: str, options: BenchmarkOptions) -> None:
    if options.folds is not None and options.out is None:
        raise ConfigError("--folds writes training files; give --out DIR")
    if options.folds is not None and options.weights is not None:
        raise ConfigError("--folds writes training files and --weights scores them; give one of the two")
    if options.weights is not None and options.encoder is not None:
        raise ConfigError("--weights takes the encoder of each fold; leave --encoder out")
    if options.folds is None and (options.add_training or options.finetune_settings):
        raise ConfigError("--add-training and --finetune-settings go with --folds")
    of_one_task = (options.folds, options.weights, options.encoder, options.reading.adapter)
    if name == "negex" and any(given is not None for given in of_one_task):
        raise ConfigError(
            "negex holds no reports to train on and asks two tasks; --folds, --weights, --encoder and --adapter do not go with it"
        )


def _negex(file: Path, options: BenchmarkOptions, progress: Callable[[str], Progress] | None) -> Session:
    with ExitStack() as stack:
        out = options.out or Path(stack.enter_context(TemporaryDirectory(prefix="radtag-benchmark-")))
        table, notes, n_failed = run_negex(
            file, read_mapping().negex, options.chosen, out=out, workers=options.workers, progress=progress
        )
        if options.out is not None:
            write_tables([table], out / "tables")
    return Session(table, notes, n_failed=n_failed)


def _written_folds(name: str, file: Path, benchmark: Benchmark, out: Path, options: BenchmarkOptions) -> Session:
    n_folds = options.folds or 1
    folds = write_folds(benchmark, out, n_folds=n_folds, settings=options.finetune_settings, add_training=options.add_training)
    counts = [f"{fold.folder}: {fold.n_train} train, {fold.n_dev} dev, {fold.n_test} test" for fold in folds]
    scored = (
        f"radtag eval benchmark {name} OTHER_FILE --systems rules,encoder --encoder {folds[0].folder / 'weights'}"
        if n_folds == 1
        else f"radtag eval benchmark {name} {file} --systems rules,encoder,two-stage --weights {out}"
    )
    return Session(None, tuple(counts), ("train, then score:", *(fold.command() for fold in folds), scored))

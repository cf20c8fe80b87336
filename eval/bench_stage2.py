"""Stage 2 with each of its tricks on and off, and the floor under it: reading nothing but the tokens of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.contracts import EntityFlags, RelationMapper, Report
from configs.schema import Task
from eval.bench_published import FromScratch, PublishedWay
from eval.bench_timing import Timing, Way, time_ways, times_as_fast
from pipeline.run import Pipeline
from stage2_relations.adapter_folder import adapter_file
from stage2_relations.combine import COMBINE_FILE, PRESENCE_FEATURES, RELATION_FEATURES, Combination, load_combination
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.llama_log import silence_llama
from stage2_relations.prompt import quoted_report
from stage2_relations.relate import LanguageModelMapper
from stage2_relations.score import BranchMapper

FLOOR = "floor"
FREE_SCRATCH, FREE_KEPT = "free answer, prompt from scratch", "free answer, prefix kept"
GRAMMAR, GROUNDED = "answer under a grammar", "answer under a grammar, only what the text offers"
SCORES_Q4, SCORES_Q8, SCORES = "scores, Q4_1, no adapter", "scores, Q8_0, no adapter", "scores, as shipped"
ALL_HINTED, TWICE, ONCE = "scores, every key asked", "each of two equal texts", "two equal texts at once"

ADAPTER = "adapter on the model"


@dataclass(frozen=True, slots=True)
class Trick:
    """What is switched: the way without it and the way with it."""

    name: str
    off: str
    on: str


TRICKS = (
    Trick("constant prefix kept in the cache", FREE_SCRATCH, FREE_KEPT),
    Trick("grammar instead of a free answer", FREE_KEPT, GRAMMAR),
    Trick("asks only what the text leaves open", GRAMMAR, GROUNDED),
    Trick("branch scores instead of an answer", GRAMMAR, SCORES_Q8),
    Trick("Q8_0 instead of the packaged Q4_1", SCORES_Q4, SCORES_Q8),
    Trick(ADAPTER, SCORES_Q8, SCORES),
    Trick("hints gate the questions", ALL_HINTED, SCORES),
    Trick("equal texts read once (every text stands twice)", TWICE, ONCE),
)


@dataclass(frozen=True, slots=True)
class Stage2Files:
    """The model file as radtag runs it and as packaged (None: not measured), and the shipped adapter folder, if there is one."""

    model: Path
    packaged: Path | None
    adapter: Path | None


@dataclass(frozen=True, slots=True)
class Stage2Bench:
    """Timings by way, over the reports with a hint; `n_tokens` is their mean length. Not adapted: no adapter ships for the task."""

    timings: Mapping[str, Timing]
    n_tokens: float
    n_without_hint: int
    adapted: bool

    @property
    def floor_share(self) -> float:
        """Processor time of the floor over that of stage 2 as it ships; 1 would be no overhead at all."""
        return times_as_fast(self.timings, FLOOR, SCORES) ** -1

    def as_object(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "mean_report_tokens": round(self.n_tokens, 1),
            "n_reports_without_hint": self.n_without_hint,
            "adapted": self.adapted,
            "floor_share": round(self.floor_share, 3),
            "ways": [timing.as_object() for timing in self.timings.values()],
            "tricks": [
                {
                    "trick": trick.name,
                    "off": trick.off,
                    "on": trick.on,
                    "off_cpu_s": round(self.timings[trick.off].cpu_s, 5),
                    "on_cpu_s": round(self.timings[trick.on].cpu_s, 5),
                    "times_as_fast": round(times_as_fast(self.timings, trick.on, trick.off), 2),
                }
                for trick in TRICKS
                if trick.off in self.timings and trick.on in self.timings and (self.adapted or trick.name != ADAPTER)
            ],
        }


def bench_stage2(
    task: Task,
    files: Stage2Files,
    reports: Sequence[Report],
    flags: Mapping[str, EntityFlags],
    *,
    n_runs: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Stage2Bench:
    """Times every way on the reports that have a hint; `flags` are stage 1's by report id.

    Raises:
        ValueError: no report has a hint.
        ModelFileError, CombineError: files that cannot be used.
    """
    hinted = [report for report in reports if flags[report.report_id].hinted]
    if not hinted:
        raise ValueError(f"none of {len(reports)} reports has a hint; stage 2 has nothing to read")
    with ExitStack() as stack:
        adapter = None if files.adapter is None else adapter_file(files.adapter)
        raw = stack.enter_context(_loaded(files.model))
        shipped = raw if adapter is None else stack.enter_context(_loaded(files.model, adapter))
        packaged = None if files.packaged is None else stack.enter_context(_loaded(files.packaged))
        combination = (
            neutral_combination(task)
            if files.adapter is None
            else load_combination(files.adapter / COMBINE_FILE, task_name=task.name, adapter=shipped.adapter_hash)
        )
        mappers: dict[str, RelationMapper] = {
            FREE_SCRATCH: PublishedWay(task, FromScratch(raw)),
            FREE_KEPT: PublishedWay(task, raw),
            GRAMMAR: LanguageModelMapper(task, raw, grounding=False, reject="any"),
            GROUNDED: LanguageModelMapper(task, raw),
            SCORES_Q8: BranchMapper(task, raw, combination),
            SCORES: BranchMapper(task, shipped, combination),
        }
        if packaged is not None:
            mappers[SCORES_Q4] = BranchMapper(task, packaged, combination)
        if shipped is raw:
            del mappers[SCORES_Q8]
        ways = [Way(name, _relate(mapper, flags)) for name, mapper in mappers.items()]
        everything = {report_id: replace(flag, hinted=task.keys) for report_id, flag in flags.items()}
        ways.append(Way(ALL_HINTED, _relate(mappers[SCORES], everything)))
        ways += _ways_with_repeats(task, mappers[SCORES])
        ways.append(Way(FLOOR, stack.enter_context(floor(files.model, adapter))))
        timings = time_ways(ways, hinted, n_runs=n_runs, tell=tell)
        if shipped is raw:
            timings[SCORES_Q8] = replace(timings[SCORES], name=SCORES_Q8)
        n_tokens = sum(len(raw.branch_tokens(quoted_report(report.text))) for report in hinted) / len(hinted)
    return Stage2Bench(timings, n_tokens, len(reports) - len(hinted), adapter is not None)


def neutral_combination(task: Task) -> Combination:
    """Weights of a task without a shipped adapter: the model's word alone. Good for timing; its answers are scored nowhere."""
    presence = {name: float(name == "model") for name in PRESENCE_FEATURES}
    relation = {name: float(name == "model") for name in RELATION_FEATURES}
    return Combination(task.name, 0.0, presence, 0.0, relation)


@contextmanager
def floor(model: Path, adapter: Path | None) -> Any:
    """A way that reads the tokens of each report alone, in one go from an empty cache, and takes one score."""
    import llama_cpp.llama_cpp as library
    from llama_cpp import Llama

    silence_llama()
    lora = None if adapter is None else str(adapter)
    llama: Any = Llama(
        str(model), n_ctx=4096, n_batch=512, n_ubatch=512, n_threads=1, n_threads_batch=1, lora_path=lora, verbose=False
    )

    def read(reports: Sequence[Report]) -> list[float]:
        scores = []
        for report in reports:
            llama.reset()
            llama.eval(llama.tokenize(quoted_report(report.text).encode(), add_bos=False, special=False))
            scores.append(float(library.llama_get_logits_ith(llama.ctx, -1)[0]))
        return scores

    try:
        yield read
    finally:
        llama.close()


@contextmanager
def _loaded(model: Path, adapter: Path | None = None) -> Any:
    loaded = LlamaCppModel.load(model, threads=1, adapter=adapter)
    try:
        yield loaded
    finally:
        loaded.close()


def _relate(mapper: RelationMapper, flags: Mapping[str, EntityFlags]) -> Callable[[Sequence[Report]], object]:
    return lambda reports: mapper.relate(reports, [flags[report.report_id] for report in reports])


def _ways_with_repeats(task: Task, mapper: RelationMapper) -> list[Way]:
    """Every text twice, with two ids, through `Pipeline.tag`; flags are left out, so the mapper asks what the text names."""
    pipeline = Pipeline(task, None, mapper, {})

    def twice(reports: Sequence[Report]) -> list[Report]:
        return [one for report in reports for one in (report, replace(report, report_id=f"{report.report_id}-again"))]

    return [
        Way(TWICE, lambda reports: [pipeline.tag([report]) for report in twice(reports)]),
        Way(ONCE, lambda reports: pipeline.tag(twice(reports))),
    ]

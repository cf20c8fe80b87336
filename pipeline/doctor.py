"""What is installed and what is missing: versions, weights, model, threads, GPU, cache."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from configs.schema import ConfigError, Task, known_tasks, load_task
from pipeline.settings import encoder_hash, files_hash, free_cores, radtag_version

LIBRARIES = ("torch", "transformers", "tokenizers", "onnxruntime", "kiwipiepy", "spacy", "llama-cpp-python", "pyarrow", "duckdb")
# What an extra is for, and the distributions that it brings.
EXTRAS = {
    "ray": ("radtag tag --engine ray", ("ray",)),
    "train": ("radtag train", ("onnx", "onnxscript", "peft", "gguf")),
    "bench": ("the comparison of radtag eval throughput", ("langextract",)),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `ok` None means: for information, nothing that could be missing."""

    name: str
    found: str
    ok: bool | None = None


def checks() -> Iterator[Check]:
    """All checks, the quick ones first. Loads the encoder's and llama.cpp's libraries."""
    yield Check("radtag", f"{radtag_version()}, Python {platform.python_version()} on {platform.machine()}")
    for name in LIBRARIES:
        try:
            yield Check(name, metadata.version(name), ok=True)
        except metadata.PackageNotFoundError:
            yield Check(name, "is not installed", ok=False)
    for extra, (purpose, distributions) in EXTRAS.items():
        yield _extra_check(extra, purpose, distributions)
    yield Check("threads", f"{free_cores()} (cores this process may use; set RADTAG_THREADS or --threads for less)")
    for task_name in known_tasks():
        yield from _task_checks(task_name)
    yield from _model_checks()


def _extra_check(extra: str, purpose: str, distributions: tuple[str, ...]) -> Check:
    found = []
    for name in distributions:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            return Check(f"extra {extra}", f"{name} is not installed; {purpose} needs it: pip install 'radtag[{extra}]'")
    return Check(f"extra {extra}", ", ".join(found), ok=True)


def _task_checks(task_name: str) -> Iterator[Check]:
    try:
        task = load_task(task_name)
    except ConfigError as error:
        yield Check(f"task {task_name}", str(error), ok=False)
        return
    yield Check(f"task {task_name}", f"{len(task.entities)} entities, {len(task.values)} values, {task.content_hash[:12]}", ok=True)
    name = f"weights {task_name}"
    try:
        from stage1_encoder.encoder import Encoder, EncoderError, default_weights
    except ImportError as error:
        yield Check(name, f"cannot be checked: {error}", ok=False)
        return
    yield _adapter_check(task_name)
    folder = default_weights(task_name)
    try:
        encoder = Encoder.load(folder)
    except EncoderError as error:
        yield Check(name, str(error), ok=False)
        return
    if tuple(encoder.keys) != task.keys:
        yield Check(name, f"{folder}: their keys are not those of the task file", ok=False)
        return
    yield Check(name, f"{folder}, {encoder_hash(folder)[:12]}", ok=True)
    yield _pairs_check(task, folder)


def _pairs_check(task: Task, folder: Path) -> Check:
    from stage1_encoder.encoder import EncoderError
    from stage1_encoder.pair_encoder import PAIRS_FILE, PairEncoder, has_pairs, pairs_hash
    from stage2_relations.adapter_folder import default_adapter
    from stage2_relations.combine import COMBINE_FILE, CombineError, fitted_with

    name = f"pairs {task.name}"
    if not has_pairs(folder):
        return Check(name, f"{folder} has no {PAIRS_FILE}; stage 2 reads relations without a pair encoder")
    try:
        PairEncoder.load(folder, task=task)
        adapter = default_adapter(task.name)
        fitted = None if adapter is None else fitted_with(adapter / COMBINE_FILE).pairs
    except (EncoderError, CombineError) as error:
        return Check(name, str(error), ok=False)
    hashed = pairs_hash(folder) or ""
    if adapter is not None and fitted != hashed:
        problem = f"{adapter / COMBINE_FILE}: was not fitted with {folder / PAIRS_FILE}; 'radtag train combine' fits it"
        return Check(name, problem, ok=False)
    return Check(name, f"{folder}, {hashed[:12]}", ok=True)


def _adapter_check(task_name: str) -> Check:
    from stage2_relations.adapter_folder import adapter_file, adapter_parts, check_adapter, default_adapter
    from stage2_relations.combine import COMBINE_FILE, CombineError, load_combination
    from stage2_relations.model_file import ModelFileError, default_model, file_sha256

    name = f"adapter {task_name}"
    try:
        folder = default_adapter(task_name)
        if folder is None:
            return Check(name, "none ships; the model is read by the answers that it writes")
        load_combination(folder / COMBINE_FILE, task_name=task_name, adapter=file_sha256(adapter_file(folder)))
        try:
            model = default_model()
        except ModelFileError:
            return Check(name, f"{folder}; not compared with the model, which cannot be used")
        check_adapter(folder, model=model, task_name=task_name)
    except (ModelFileError, CombineError) as error:
        return Check(name, str(error), ok=False)
    return Check(name, f"{folder}, {files_hash(folder, adapter_parts(folder))[:12]}", ok=True)


def _model_checks() -> Iterator[Check]:
    from stage2_relations.model_file import ModelFileError, cache_folder, default_model, file_sha256

    try:
        path = default_model()
        yield Check("model", f"{path}, {file_sha256(path)[:12]}", ok=True)
    except ModelFileError as error:
        yield Check("model", str(error), ok=False)
    try:
        import llama_cpp
    except (ImportError, OSError) as error:
        yield Check("llama.cpp", f"cannot be loaded: {error}", ok=False)
        return
    offload = bool(llama_cpp.llama_supports_gpu_offload())
    yield Check(
        "GPU offload", "llama.cpp was built with it" if offload else "llama.cpp was built without it; --gpu-layers has no effect"
    )
    folder = cache_folder()
    yield Check("cache", f"{folder} ({_cache_state(folder)})")


def _cache_state(folder: Path) -> str:
    if not folder.exists():
        return "does not exist yet"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 2**20:.0f} MiB{'' if os.access(folder, os.W_OK) else ', cannot be written'}"

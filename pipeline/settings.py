"""What decides the records of a run: its settings, and the fingerprint of everything that can change a result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.schema import load_task
from configs.yaml_lines import did_you_mean
from pipeline.text_as_given import DEFAULT_MAX_REPORT_CHARS

Read = Literal["generate", "score"]
System = Literal["two-stage", "encoder", "llm", "rules", "published-rules"]
SYSTEMS: tuple[str, ...] = get_args(System)
SYSTEMS_WITH_ENCODER = ("two-stage", "encoder")
SYSTEMS_WITH_MODEL = ("two-stage", "llm")
READS: tuple[str, ...] = get_args(Read)
# Where a machine or a person decides and no record: neither in the fingerprint nor in run.json.
PLACE_SETTINGS = {"threads", "gpu_layers", "server", "server_timeout_s", "http_concurrency"}

FINGERPRINT_HEX = 32  # 128 bits
ROOT = Path(__file__).resolve().parent.parent
# The code that decides what a record says; training, commands and engines are not part of it.
RESULT_CODE = (
    "configs/*.py",
    "configs/*_cues.yaml",
    "stage1_encoder/*.py",
    "stage2_relations/*.py",
    "pipeline/text_as_given.py",
    "pipeline/run.py",
    "pipeline/records.py",
)


class SettingsError(Exception):
    """Settings that cannot be used: what was found, what is expected."""


class Settings(BaseModel):
    """How reports are tagged.

    Attributes:
        task: A known task or the path of a task file.
        encoder: Folder of stage-1 weights; None means those that ship for the task.
        model: GGUF file; None means the packaged one.
        gpu_layers: Layers of the model to offload; -1 means all. Changes speed, not part of the fingerprint.
        adapter: Folder that 'radtag train adapter' wrote, which is read by scores alone, or a GGUF file of LoRA matrices of another
            origin; None means the one that ships for the task where the packaged model is read by scores.
        no_adapter: Take none, not even the one that ships.
        read: How the model is asked: it writes an answer, or its scores of single letters are read. None means by scores with an
            adapter, and by answers without.
        server: Address of an OpenAI-compatible server that runs the model; nothing else opens a connection. Not part of the
            fingerprint.
        server_model: The name that the server knows the model by. Part of the fingerprint, but the server alone knows its weights.
        server_plain: The server is sent standard fields alone, no grammar.
        server_timeout_s: For one answer; not part of the fingerprint.
        http_concurrency: Reports on their way to the server at once; not part of the fingerprint.
        grounding: Only values that the report mentions can be produced.
        max_report_chars: Longer reports are rejected, never cut.
        threads: For each stage; not part of the fingerprint.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    system: System = "two-stage"
    encoder: Path | None = None
    model: Path | None = None
    gpu_layers: int = Field(default=0, ge=-1)
    adapter: Path | None = None
    no_adapter: bool = False
    read: Read | None = None
    server: str | None = None
    server_model: str | None = Field(default=None, min_length=1)
    server_plain: bool = False
    server_timeout_s: float = Field(default=120.0, gt=0)
    http_concurrency: int = Field(default=1, ge=1, le=256)
    grounding: bool = True
    max_report_chars: int = Field(default=DEFAULT_MAX_REPORT_CHARS, ge=1)
    threads: int = Field(default=1, ge=1)

    @property
    def needs_encoder(self) -> bool:
        """Whether stage 1 runs."""
        return self.system in SYSTEMS_WITH_ENCODER

    @property
    def needs_model(self) -> bool:
        """Whether a language model runs."""
        return self.system in SYSTEMS_WITH_MODEL


def settings(**values: Any) -> Settings:
    """Checked settings. Raises SettingsError at the first value that cannot be used, with the nearest known one."""
    for name, default, known in (("system", SYSTEMS[0], SYSTEMS), ("read", None, (*READS, None))):
        if (value := values.get(name, default)) not in known:
            raise SettingsError(f"{name} '{value}' is not known{did_you_mean(str(value), [one for one in known if one])}")
    try:
        checked = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{name} is {first.get('input')!r}: {first['msg']}") from None
    for name, given, systems in (
        ("encoder", checked.encoder, SYSTEMS_WITH_ENCODER),
        ("model", checked.model, SYSTEMS_WITH_MODEL),
        ("adapter", checked.adapter, SYSTEMS_WITH_MODEL),
        ("read", checked.read, SYSTEMS_WITH_MODEL),
        ("server", checked.server, SYSTEMS_WITH_MODEL),
    ):
        if given is not None and checked.system not in systems:
            raise SettingsError(f"system '{checked.system}' uses no {name}; --{name} goes with {' or '.join(systems)}")
    if checked.adapter is not None and checked.no_adapter:
        raise SettingsError("--adapter and --no-adapter exclude each other")
    if checked.adapter is not None and checked.read == "generate" and checked.adapter.is_dir():
        raise SettingsError(
            f"{checked.adapter}: is an adapter folder, trained to be read by scores; leave --read generate out, or --adapter"
        )
    _check_server(checked)
    return checked


def _check_server(checked: Settings) -> None:
    if checked.server is None:
        only = {"server_model": None, "server_plain": False, "http_concurrency": 1}
        for name, unset in only.items():
            if getattr(checked, name) != unset:
                raise SettingsError(f"--{name.replace('_', '-')} goes with --server")
        return
    for name, unset in {"model": None, "adapter": None, "gpu_layers": 0}.items():
        if getattr(checked, name) != unset:
            raise SettingsError(f"--{name.replace('_', '-')} goes with a model in this process, not with --server")
    if checked.read == "score":
        raise SettingsError("--read score needs a model in this process; a server is read by --read generate")
    if checked.server_model is None:
        raise SettingsError("--server needs --server-model, the name that the server knows its model by")
    from stage2_relations.openai_http import ServerAddressError, chat_url

    try:
        chat_url(checked.server)
    except ServerAddressError as error:
        raise SettingsError(f"--server: {error}") from None


def with_files(given: Settings) -> Settings:
    """The same settings with `encoder`, `model`, `adapter` and `read` filled in where the system needs them.

    Raises:
        SettingsError: there are no weights for the task.
        ModelFileError: the packaged model cannot be used (stage2_relations.model_file), or an adapter does not go with it.
    """
    filled: dict[str, Path | str] = {}
    if given.needs_encoder:
        folder = given.encoder
        if folder is None:
            from stage1_encoder.encoder import default_weights

            folder = default_weights(load_task(given.task).name)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise SettingsError(f"{folder}: holds no encoder weights for task '{given.task}'; 'radtag train finetune' writes them")
        filled["encoder"] = folder
    if given.needs_model:
        filled |= {"read": "generate"} if given.server is not None else _model_files(given)
    return given.model_copy(update=filled)


def _model_files(given: Settings) -> dict[str, Path | str]:
    from stage2_relations.adapter_folder import adapter_file, check_adapter, default_adapter
    from stage2_relations.model_file import check_gguf, default_model

    task_name = load_task(given.task).name
    model = default_model() if given.model is None else check_gguf(given.model)
    adapter = given.adapter
    if adapter is None and given.model is None and not given.no_adapter and given.read != "generate":
        adapter = default_adapter(task_name)
    found: dict[str, Path | str] = {"model": model, "read": given.read or ("generate" if adapter is None else "score")}
    if adapter is not None:
        check_gguf(adapter_file(adapter))
        check_adapter(adapter, model=model, task_name=task_name)
        found["adapter"] = adapter
    return found


def provenance_parts(filled: Settings) -> dict[str, str]:
    """Everything that can change a record, by name. `filled` comes from `with_files`. Raises ConfigError for the task."""
    task = load_task(filled.task)
    parts = {
        "radtag": radtag_version(),
        "code": files_hash(ROOT, (path for pattern in RESULT_CODE for path in ROOT.glob(pattern))),
        "task": task.name,
        "task_file": task.content_hash,
        "system": filled.system,
        "max_report_chars": str(filled.max_report_chars),
    }
    if filled.system == "published-rules":
        parts["rules_libraries"] = _versions("spacy")
    if filled.needs_encoder and filled.encoder is not None:
        parts["encoder"] = encoder_hash(filled.encoder)
        parts["encoder_libraries"] = _versions("onnxruntime", "tokenizers", "kiwipiepy")
    if filled.needs_model:
        parts |= _model_parts(filled)
    return parts


def _model_parts(filled: Settings) -> dict[str, str]:
    parts = {"grounding": "on" if filled.grounding else "off"}
    if filled.read is not None:
        parts["read"] = filled.read
    if filled.server is not None and filled.server_model is not None:
        parts["server_model"] = filled.server_model
        parts["server_fields"] = "plain" if filled.server_plain else "all"
    if filled.model is not None:
        from stage2_relations.model_file import file_sha256

        parts["model"] = file_sha256(filled.model)
        parts["model_libraries"] = _versions("llama-cpp-python")
    if filled.adapter is not None:
        from stage2_relations.adapter_folder import adapter_parts

        files = adapter_parts(filled.adapter)
        parts["adapter"] = files_hash(files[0].parent, files)
    return parts


def fingerprint(parts: dict[str, str]) -> str:
    """32 hexadecimal digits; equal ones mean that a record can be repeated."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:FINGERPRINT_HEX]


def encoder_hash(folder: Path) -> str:
    """sha256 over the three files of stage-1 weights that decide flags; a model card beside them decides nothing."""
    from stage1_encoder.encoder import MODEL_FILE, TOKENIZER_FILE
    from stage1_encoder.flags import CONFIG_FILE

    return files_hash(folder, (folder / name for name in (MODEL_FILE, TOKENIZER_FILE, CONFIG_FILE)))


def files_hash(folder: Path, files: Iterable[Path]) -> str:
    """sha256 over names and bytes of the files, in the order of their names; what is no file is left out."""
    whole = hashlib.sha256()
    for path in sorted(set(files)):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            whole.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return whole.hexdigest()


def radtag_version() -> str:
    """Of the checkout this file stands in, else of the installed distribution."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        import tomllib

        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return metadata.version("radtag")


def _versions(*distributions: str) -> str:
    return " ".join(f"{name}={metadata.version(name)}" for name in distributions)


def free_cores() -> int:
    """Cores this process may use: its affinity, capped by the container's quota; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _quota_cores() or allowed))


def _quota_cores() -> int | None:
    """Whole cores of the cgroup's processor quota (version 2, then 1); None means no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else max(1, int(quota) // int(period))

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
System = Literal["two-stage", "encoders", "encoder", "llm", "rules", "published-rules"]
SYSTEMS: tuple[str, ...] = get_args(System)
SYSTEMS_WITH_ENCODER = ("two-stage", "encoders", "encoder")
SYSTEMS_WITH_MODEL = ("two-stage", "llm")
# Those that weigh what they read by the combine.json of an adapter folder.
SYSTEMS_THAT_WEIGH = (*SYSTEMS_WITH_MODEL, "encoders")
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
        rereads: How many more times a model that writes its answers reads each report, each time with the worked examples in
            another order: how often the readings agree goes into the confidences. Part of the fingerprint only where above 0.
        server: Address of an OpenAI-compatible server that runs the model; nothing else opens a connection. Not part of the
            fingerprint.
        server_model: The name that the server knows the model by. Part of the fingerprint, but the server alone knows its weights.
        server_plain: The server is sent standard fields alone, no grammar.
        server_timeout_s: For one answer; not part of the fingerprint.
        http_concurrency: Reports on their way to the server at once; not part of the fingerprint.
        pairs: The pair encoder reads too, where there is one; off to measure what it is worth.
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
    rereads: int = Field(default=0, ge=0, le=9)
    server: str | None = None
    server_model: str | None = Field(default=None, min_length=1)
    server_plain: bool = False
    server_timeout_s: float = Field(default=120.0, gt=0)
    http_concurrency: int = Field(default=1, ge=1, le=256)
    pairs: bool = True
    grounding: bool = True
    max_report_chars: int = Field(default=DEFAULT_MAX_REPORT_CHARS, ge=1)
    threads: int = Field(default=1, ge=1)

    @property
    def needs_encoder(self) -> bool:
        """Whether stage 1 runs."""
        return self.system in SYSTEMS_WITH_ENCODER

    @property
    def weighs(self) -> bool:
        """Whether what is read is weighed by a combine.json; known when `with_files` has filled `read`."""
        return self.system == "encoders" or self.read == "score"

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
        ("adapter", checked.adapter, SYSTEMS_THAT_WEIGH),
        ("read", checked.read, SYSTEMS_WITH_MODEL),
        ("rereads", checked.rereads or None, SYSTEMS_WITH_MODEL),
        ("server", checked.server, SYSTEMS_WITH_MODEL),
    ):
        if given is not None and checked.system not in systems:
            raise SettingsError(f"system '{checked.system}' uses no {name}; --{name} goes with {' or '.join(systems)}")
    if checked.system == "encoders" and not checked.pairs:
        raise SettingsError("system 'encoders' reads relations with the pair encoder alone; --no-pairs goes with two-stage")
    if not checked.pairs and (checked.system != "two-stage" or checked.server is not None or checked.read == "generate"):
        raise SettingsError("--no-pairs goes with system two-stage and --read score: nothing else has a pair encoder read")
    if checked.system == "encoders" and checked.no_adapter:
        raise SettingsError("system 'encoders' uses no adapter but the weights beside one; --no-adapter goes with two-stage or llm")
    if checked.adapter is not None and checked.no_adapter:
        raise SettingsError("--adapter and --no-adapter exclude each other")
    if checked.adapter is not None and checked.read == "generate" and checked.adapter.is_dir():
        raise SettingsError(
            f"{checked.adapter}: is an adapter folder, trained to be read by scores; leave --read generate out, or --adapter"
        )
    if checked.rereads and checked.read == "score":
        raise SettingsError("--rereads goes with --read generate, not with --read score")
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
        SettingsError: there are no weights for the task, or its prompts cannot be read again so many times.
        ModelFileError: the packaged model cannot be used (stage2_relations.model_file), or an adapter does not go with it.
    """
    filled: dict[str, Any] = {}
    if given.needs_encoder:
        folder = given.encoder
        if folder is None:
            from stage1_encoder.encoder import default_weights

            folder = default_weights(load_task(given.task).name)
        if not folder.is_dir() or not any(folder.iterdir()):
            raise SettingsError(f"{folder}: holds no encoder weights for task '{given.task}'; 'radtag train finetune' writes them")
        filled["encoder"] = folder
    if given.system == "encoders":
        filled["adapter"] = _weighed_by(given, filled["encoder"])
    if given.needs_model:
        filled |= {"read": "generate"} if given.server is not None else _model_files(given)
        _check_rereads(given, read=filled["read"])
    return given.model_copy(update=filled)


def _weighed_by(given: Settings, encoder: Path) -> Path:
    """The folder whose combine.json weighs the pair encoder in `encoder`."""
    from stage1_encoder.pair_encoder import PAIRS_FILE, has_pairs
    from stage2_relations.adapter_folder import default_adapter
    from stage2_relations.combine import COMBINE_FILE

    if not has_pairs(encoder):
        raise SettingsError(f"{encoder}: holds no {PAIRS_FILE}, which system 'encoders' needs; 'radtag train pairs' writes it")
    folder = given.adapter or default_adapter(load_task(given.task).name)
    if folder is None or not (folder / COMBINE_FILE).is_file():
        raise SettingsError(f"system 'encoders' needs --adapter FOLDER with {COMBINE_FILE}, which 'radtag train combine' writes")
    return folder


def _check_rereads(given: Settings, *, read: Path | str) -> None:
    """A step that is asked in the same words again gives the same answer again, which would pass for agreement."""
    if not given.rereads:
        return
    if read != "generate":
        raise SettingsError(f"--rereads goes with --read generate; this model and adapter are read by --read {read}")
    from stage2_relations.prompt import n_other_orders

    task = load_task(given.task)
    fewest = min(task.steps, key=n_other_orders)
    most = n_other_orders(fewest)
    if given.rereads <= most:
        return
    n_examples, what = len(fewest.prompt.examples), f"step '{fewest.name}' of task '{task.name}'"
    if not most:
        raise SettingsError(f"--rereads needs two worked examples or more to reorder; {what} has {n_examples}")
    raise SettingsError(
        f"--rereads {given.rereads} is more than {what} allows: {n_examples} worked examples; the largest is {most}"
    )


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


def uses_pairs(filled: Settings) -> bool:
    """Whether the encoder's folder holds a pair encoder and stage 2 has weights for one. `filled` comes from `with_files`.

    Raises:
        CombineError: a combine.json that cannot be read.
    """
    if filled.encoder is None or not filled.weighs or filled.adapter is None or not filled.pairs:
        return False
    from stage1_encoder.pair_encoder import has_pairs
    from stage2_relations.combine import COMBINE_FILE, fitted_with

    path = filled.adapter / COMBINE_FILE
    return has_pairs(filled.encoder) and path.is_file() and fitted_with(path).pairs is not None


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
    if filled.system == "encoders" and filled.adapter is not None:
        from stage2_relations.combine import COMBINE_FILE

        parts["combination"] = files_hash(filled.adapter, [filled.adapter / COMBINE_FILE])
        parts["grounding"] = "on" if filled.grounding else "off"
    if uses_pairs(filled) and filled.encoder is not None:
        from stage1_encoder.pair_encoder import pairs_hash

        parts["pairs"] = pairs_hash(filled.encoder) or ""
    return parts


def _model_parts(filled: Settings) -> dict[str, str]:
    parts = {"grounding": "on" if filled.grounding else "off"}
    if filled.read is not None:
        parts["read"] = filled.read
    if filled.rereads:
        parts["rereads"] = str(filled.rereads)
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

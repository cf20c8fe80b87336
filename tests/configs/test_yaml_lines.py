from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from configs.yaml_lines import ConfigError, YamlFile, did_you_mean


class Room(BaseModel):
    model_config = ConfigDict(extra="forbid")
    beds: int
    name: str


class House(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rooms: list[Room]


def written(folder: Path, text: str) -> Path:
    path = folder / "house.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        YamlFile(written(folder, text)).check(House)
    message = str(raised.value)
    assert message.startswith(f"{folder / 'house.yaml'}:")
    return message.removeprefix(f"{folder / 'house.yaml'}:")


def test_a_file_that_fits_the_model_is_that_model(tmp_path: Path) -> None:
    file = YamlFile(written(tmp_path, "rooms:\n  - {beds: 1, name: a}\n"))
    assert file.check(House) == House(rooms=[Room(beds=1, name="a")])


def test_wrong_type_points_at_its_line_and_shows_what_was_found(tmp_path: Path) -> None:
    message = problem(tmp_path, "rooms:\n  - name: a\n    beds: many\n")
    assert message.startswith("3: 'rooms.0.beds' is 'many'; ")


def test_unknown_field_names_the_nearest_one(tmp_path: Path) -> None:
    assert problem(tmp_path, "rooms:\n  - name: a\n    beds: 1\n    bed: 2\n") == "4: 'bed' is not known; did you mean 'beds'?"


def test_missing_field_points_at_the_block_it_is_missing_from(tmp_path: Path) -> None:
    assert problem(tmp_path, "rooms:\n  - {beds: 1, name: a}\n  - name: b\n") == "3: 'rooms.1.beds' is missing"


def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    assert problem(tmp_path, "rooms:\n  - name: a\n    beds: 1\n    name: b\n") == "4: 'name' stands twice; first in line 2"


def test_broken_yaml_points_at_the_line(tmp_path: Path) -> None:
    assert problem(tmp_path, "rooms:\n  - [1, 2\nmore: 1\n").startswith("3: is not valid YAML")


@pytest.mark.parametrize(("text", "kind"), [("- 1\n", "list"), ("", "NoneType"), ("word\n", "str")])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    assert problem(tmp_path, text) == f"1: holds {kind}; a mapping of names to values is expected"


def test_missing_file_and_folder_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file does not exist"):
        YamlFile(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        YamlFile(tmp_path)


def test_bytes_that_are_not_utf8_are_said_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="byte 9 is not UTF-8"):
        YamlFile(path)


def test_line_of_a_place_that_does_not_exist_is_that_of_its_nearest_parent(tmp_path: Path) -> None:
    file = YamlFile(written(tmp_path, "rooms:\n  - name: a\n    beds: 1\n"))
    assert file.line(("rooms", 0, "beds")) == 3
    assert file.line(("rooms", 7)) == 1
    assert file.line(()) == 1


def test_an_anchor_shared_by_two_lists_is_read_in_both(tmp_path: Path) -> None:
    file = YamlFile(written(tmp_path, "rooms:\n  - &one {beds: 1, name: a}\n  - *one\n"))
    assert len(file.check(House).rooms) == 2


def test_did_you_mean_ignores_case_and_lists_all_names_when_none_is_near() -> None:
    assert did_you_mean("RUL ", ["rul", "lll"]) == "; did you mean 'rul'?"
    assert did_you_mean("xyz", ["rul", "lll"]) == "; known: lll, rul"
    assert did_you_mean("xyz", []) == ""


@pytest.mark.parametrize("name", ["mass in RUL of John Smith", "x" * 41, "12345", "Normal."])
def test_did_you_mean_lists_nothing_that_may_be_a_text(name: str) -> None:
    assert did_you_mean("xyz", ["rul", name]) == "; 2 names are known"

"""The cue file: what it refuses, and what its patterns reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.cues import CUE_FILE, ConfigError, load_cues
from configs.schema import known_tasks, load_task


def changed(tmp_path: Path, **changes: object) -> Path:
    data = yaml.safe_load(CUE_FILE.read_text(encoding="utf-8")) | changes
    path = tmp_path / "cues.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in data.items() if value != "gone"}, allow_unicode=True), encoding="utf-8"
    )
    return path


def line_of(path: Path, words: str) -> int:
    return next(number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if words in line)


def test_shipped_cues_load_and_name_only_known_keys() -> None:
    cues = load_cues()
    for name, own in cues.tasks.items():
        task = load_task(name)
        assert set(own.narrower) | {v for values in own.narrower.values() for v in values} <= set(task.values)
        if own.course is not None:
            assert set(own.course.followed) | set(own.course.yields) <= set(task.entities)
            values = {*own.course.measured.values(), *own.course.statements, *own.course.outright, own.course.resolved_value}
            assert values <= set(task.values)


def test_cue_file_is_not_taken_for_a_task() -> None:
    assert CUE_FILE.stem not in known_tasks()


def test_task_without_an_entry_has_no_cues_of_its_own(tmp_path: Path) -> None:
    cues = load_cues(changed(tmp_path, tasks={}))
    own = cues.of(load_task("chest_ct"))
    assert own.course is None and own.elsewhere.search("liver, thyroid") is None


def test_broken_pattern_is_refused_with_its_line(tmp_path: Path) -> None:
    path = changed(tmp_path, negation_marks={"en": [], "ko": ["(unclosed"]})
    with pytest.raises(
        ConfigError, match=rf"cues\.yaml:{line_of(path, '(unclosed')}: cue '\(unclosed' is not a regular expression"
    ):
        load_cues(path)


def test_cue_that_matches_nothing_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="matches the empty text"):
        load_cues(changed(tmp_path, unaffected={"en": ["x*"]}))


def test_unknown_fragment_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fragment 'evidense' is not known; did you mean 'evidence'"):
        load_cues(changed(tmp_path, unaffected={"en": ["no {evidense}"]}))


def test_unknown_kind_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'negations_befor' is not known; did you mean 'negations_before'"):
        load_cues(changed(tmp_path, negations_befor={"en": ["no"]}))


def test_missing_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'scope_ends' is missing"):
        load_cues(changed(tmp_path, scope_ends="gone"))


def test_unknown_side_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="side 'lefft' is not known; did you mean 'left'"):
        load_cues(changed(tmp_path, sides={"lefft": {"en": ["left"]}}))


def test_english_cue_touches_no_latin_letter_and_korean_one_may_stand_anywhere() -> None:
    cues = load_cues()
    assert cues.negations_before.search("nodule") is None
    assert cues.negations_before.search("no nodule") is not None
    assert cues.negations_after.search("결절없음") is not None


def test_kind_without_words_never_matches(tmp_path: Path) -> None:
    assert load_cues(changed(tmp_path, unplaced={"en": []})).unplaced.search("anything") is None

"""YAML that knows its line numbers, checked against a pydantic model: errors say file, line and the nearest known name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
Location = Sequence[str | int]

MAX_NAME_CHARS = 40
MAX_NAME_WORDS = 4


class ConfigError(Exception):
    """A configuration file that cannot be used: `file:line: what was found; what is expected`."""


class YamlFile:
    """A parsed YAML file: `data` is plain Python, `line(location)` the 1-based line of a key path in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{path}: file does not exist") from None
        except IsADirectoryError:
            raise ConfigError(f"{path}: is a folder; a YAML file is expected") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: byte {error.start} is not UTF-8") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            self._root = yaml.compose(text, Loader=yaml.SafeLoader)
            self.data: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark is not None else 1
            raise ConfigError(f"{path}:{line}: is not valid YAML: {getattr(error, 'problem', error)}") from None
        self._refuse_duplicate_keys(self._root)
        if not isinstance(self.data, dict):
            raise ConfigError(f"{path}:1: holds {type(self.data).__name__}; a mapping of names to values is expected")

    def _refuse_duplicate_keys(self, node: yaml.Node | None) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}
            for key, value in node.value:
                name = str(key.value)
                if name in seen:
                    raise ConfigError(f"{self.path}:{key.start_mark.line + 1}: '{name}' stands twice; first in line {seen[name]}")
                seen[name] = key.start_mark.line + 1
                self._refuse_duplicate_keys(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self._refuse_duplicate_keys(item)

    def line(self, location: Location) -> int:
        """1-based line of the deepest part of `location` that exists in the file."""
        node: yaml.Node | None = self._root
        line = 1
        for part in location:
            found: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == str(part):
                        line, found = key.start_mark.line + 1, value
                        break
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = node.value[part]
                line = found.start_mark.line + 1
            if found is None:
                return line
            node = found
        return line

    def error(self, location: Location, message: str) -> ConfigError:
        """A ConfigError that points at `location`."""
        return ConfigError(f"{self.path}:{self.line(location)}: {message}")

    def check(self, model: type[Model]) -> Model:
        """The file as `model`. Raises ConfigError at the first problem, with the nearest known field name."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            problems = error.errors()
            # a misspelt field is also a missing one: the misspelling is the problem to show
            first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
            location = list(first["loc"])
            name = ".".join(str(part) for part in location)
            if first["type"] == "extra_forbidden":
                known = _field_names_at(model, location[:-1])
                raise self.error(location, f"'{location[-1]}' is not known{did_you_mean(str(location[-1]), known)}") from None
            if first["type"] == "missing":
                raise self.error(location, f"'{name}' is missing") from None
            found = repr(first.get("input"))
            found = found if len(found) < 60 else found[:57] + "..."
            raise self.error(location, f"'{name}' is {found}; {first['msg']}") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the nearest known name, or `; known: …` when none is near, or how many when one is no name."""
    names = sorted(known)
    near = difflib.get_close_matches(name.strip(), names, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.strip().lower(), names, n=1, cutoff=0.5
    )
    if near:
        return f"; did you mean '{near[0]}'?"
    if not names:
        return ""
    return f"; known: {', '.join(names)}" if are_names(names) else f"; {len(names)} names are known"


def are_names(found: Iterable[str]) -> bool:
    """Whether all of `found` could be names that people gave: what stands where names belong may be a row of a report's text."""
    return not any(
        len(name) > MAX_NAME_CHARS or len(name.split()) > MAX_NAME_WORDS or name.strip().isdecimal() or name.endswith(".")
        for name in found
    )


def _field_names_at(model: type[BaseModel], location: Location) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:
            return []
        current = _model_inside(field.annotation)
    if isinstance(current, type) and issubclass(current, BaseModel):
        return list(current.model_fields)
    return []


def _model_inside(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        inside = _model_inside(argument)
        if inside is not None:
            return inside
    return None

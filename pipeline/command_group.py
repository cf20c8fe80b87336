"""The top of the command line: one-line errors with the right exit code, and commands of other packages that load when called."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS_GROUP = "radtag.commands"
EXIT_USAGE = 2
EXIT_BROKEN_OFF = 3

# What users can put right: one line, no traceback. A module that is not loaded cannot have raised its error.
USER_ERRORS = (
    ("configs.yaml_lines", "ConfigError"),
    ("stage1_encoder.encoder", "EncoderError"),
    ("stage2_relations.model_file", "ModelFileError"),
    ("stage2_relations.combine", "CombineError"),
    ("pipeline.settings", "SettingsError"),
    ("pipeline.source_files", "SourceError"),
    ("pipeline.row_filter", "RowFilterError"),
    ("pipeline.archive", "ArchiveError"),
    ("pipeline.records", "RecordError"),
    ("pipeline.sinks", "SinkError"),
    ("pipeline.timeline", "TimelineError"),
)
RUN_ERRORS = (("pipeline.engine", "EngineError"), ("pipeline.run", "StageBugError"))


class RadtagGroup(TyperGroup):
    """A Typer group whose main() ends with 2 and one line on standard error for usage and input errors.

    A run that breaks off ends with 3: with one line where its cause is known, with a traceback where it is a bug. 1 is left to
    what a command found: rows that failed, records that are missing.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name):
            self.commands.setdefault(entry.name, LaterCommand(entry))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """See click. In standalone mode it ends the process."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.TyperException as error:
            self._end(_usage_message(error))
        except _errors(USER_ERRORS) as error:
            self._end(str(error))
        except _errors(RUN_ERRORS) as error:
            self._end(str(error), exit_code=EXIT_BROKEN_OFF)
        except Exception as error:  # noqa: BLE001 - told as the interpreter would tell it, but not with its status, which is 1
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(EXIT_BROKEN_OFF)
        sys.exit(code if isinstance(code, int) else 0)

    def _end(self, message: str, *, exit_code: int = EXIT_USAGE) -> None:
        typer.echo(message if "\n" in message else f"radtag: {message}", err=True)
        sys.exit(exit_code)


class LaterCommand(TyperGroup):
    """A command of an entry point: its help line is read from its module's file, the module is loaded when it is called."""

    def __init__(self, entry: EntryPoint) -> None:
        super().__init__(name=entry.name, short_help=first_sentence(entry.module))
        self._entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself, not of this stand-in."""
        command = typer.main.get_command(self._entry.load())
        command.name = self.name
        return command.make_context(info_name, args, parent=parent, **extra)


def first_sentence(module: str) -> str:
    """The first sentence of a module's docstring after its name, without running the module; empty when it has none."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    sentence = docstring.split("\n")[0].split(". ")[0].split(": ", 1)[-1].strip()
    return f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}." if sentence else ""


def _usage_message(error: typer.TyperException) -> str:
    formatted = getattr(error, "format_message", None)
    return str(formatted() if formatted is not None else error)


def _errors(names: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)

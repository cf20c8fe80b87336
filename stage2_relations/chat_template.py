"""Applies a model's own chat template around a prompt, so that report text never passes through it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stage2_relations.language_model import LanguageModelError

_USER = "\u2063user\u2063"
_SYSTEM = "\u2063system\u2063"


class ChatTemplate:
    """The parts of a Jinja chat template that stand before and after the one user message.

    The template comes from a model file that others made: it runs in Jinja's sandbox and sees placeholders only. A clock is
    not given to it, so that templates with a date fall back to a fixed one.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: bos_token and eos_token as the model spells them."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _refuse
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise LanguageModelError(f"the model's chat template is not usable: {error.message}") from None

    def before_user(self, system: str) -> str:
        """What stands before the user's text; a system text is in it if the template has a place for one."""
        if system and self._with_system is not None:
            return self._with_system[0].replace(_SYSTEM, system)
        return self._without_system[0]

    def user_text(self, system: str, text: str) -> str:
        """The user's text, led by the system text where the template has no place for it."""
        return f"{system}\n\n{text}" if system and self._with_system is None else text

    @property
    def after_user(self) -> str:
        """What stands between the user's text and the answer."""
        return self._without_system[1]

    @cached_property
    def _without_system(self) -> tuple[str, str]:
        parts = self._parts([{"role": "user", "content": _USER}])
        if parts is None:
            raise LanguageModelError("the model's chat template has no place for a user message")
        return parts

    @cached_property
    def _with_system(self) -> tuple[str, str] | None:
        parts = self._parts([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}])
        return parts if parts is not None and _SYSTEM in parts[0] else None

    def _parts(self, messages: list[dict[str, str]]) -> tuple[str, str] | None:
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._special_tokens)
        except TemplateError:
            return None  # some templates refuse a system message by raising
        head, found, tail = text.partition(_USER)
        return (head, tail) if found else None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)

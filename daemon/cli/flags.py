"""Command-line flags for all configuration keys, generated from the fields of `Config`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.shared.config import KEYS
from daemon.shared.config_sources import Resolved, load_config

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def config_flags(function: CommandT) -> CommandT:
    """Decorate a command with a flag for each key. It gets their values as keyword arguments; None if not given."""
    for key, field in reversed(list(KEYS.items())):
        function = _flag(key, field)(function)
    return function


def resolve(socket_flag: str | None, flags: Mapping[str, object]) -> Resolved:
    """
    Resolve the configuration from a command's flags and the group's `--socket`. The command's own `--socket` wins.

    Raises:
        ConfigError: As `load_config` does.
    """
    given = {key: value for key, value in flags.items() if value not in (None, ())}
    return load_config({"socket": socket_flag} | given, os.environ, Path.home())


def _flag(key: str, field: Field[Any]) -> Callable[[CommandT], CommandT]:
    name = "--" + key.replace("_", "-")
    about = field.metadata["help"] + _default_note(field)
    if isinstance(field.default, bool):
        return click.option(f"{name}/--no-{name[2:]}", key, default=None, help=about)
    if isinstance(field.default, tuple):
        return click.option(
            name, key, multiple=True, metavar=field.metadata["metavar"] or "PATH", help=about + " Repeatable."
        )
    if field.default_factory is dict:
        return click.option(name, key, metavar=field.metadata["metavar"] + ",...", help=about)
    # Values stay text here: `load_config` checks them like variables, with the same error texts.
    metavar = field.metadata["metavar"] or {int: "N", float: "DURATION", str: "LEVEL"}.get(type(field.default), "PATH")
    return click.option(name, key, metavar=metavar, help=about)


def _default_note(field: Field[Any]) -> str:
    if field.default is MISSING or field.default in (None, (), ""):
        return "."
    shown = f"{field.default:g}" if type(field.default) is float else str(field.default).lower()
    return f" (default {shown})."

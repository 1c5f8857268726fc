"""
Readers of configuration values: each turns a raw value into a checked one.

A reader takes the raw value, whether text stands for other types, and the home directory. It raises `ValueError` with
a phrase for the allowed values, such as "true or false".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOG_LEVELS = ("debug", "info", "warning", "error")

Reader = Callable[[Any, bool, Path], object]

_MOST = 2**31 - 1
_LAST_PORT = 65535
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:[0-9]{1,5})?|[a-z][a-z0-9+.-]*://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_MOST_SECONDS = 1e9
_SPAN = re.compile(r"(?=.)" + "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"), re.ASCII)
_UNIT_SECONDS = (86_400, 3_600, 60, 1)
_WORDS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def parse_duration(text: str) -> float:
    """
    Return the seconds of a duration: a number, or parts such as "90s", "10m", "1h30m", "2d".

    Raises:
        ValueError: If it is neither, or more than 1e9 seconds. The text names the allowed values.
    """
    parts = _SPAN.fullmatch(text.strip())
    if parts:
        numbers = parts.groups(default="0")
        return _checked(sum(float(n) * unit for n, unit in zip(numbers, _UNIT_SECONDS, strict=True)))
    try:
        return _checked(float(text))
    except ValueError:
        return _checked(math.nan)


def _checked(seconds: float) -> float:
    if 0 <= seconds <= _MOST_SECONDS:
        return seconds
    raise ValueError('a number of seconds from 0 to 1e9, or text such as "90s", "10m" or "1h30m"')


def read_seconds(raw: Any, text: bool, home: Path) -> float:
    """Read a number of seconds, or text such as "1h30m" (in every source)."""
    if isinstance(raw, str):
        return parse_duration(raw)
    return float(_checked(raw if type(raw) in (int, float) else math.nan))  # a number of TOML may be too large for one


def whole(least: int, most: int = _MOST) -> Reader:
    """Return a reader of whole numbers from `least` to `most`."""

    def read(raw: Any, text: bool, home: Path) -> int:
        if text and isinstance(raw, str) and re.fullmatch(r"[0-9]{1,10}", raw.strip()):
            raw = int(raw)
        if type(raw) is int and least <= raw <= most:
            return raw
        raise ValueError(f"a whole number from {least} to {most}")

    return read


def whole_or_auto(least: int) -> Reader:
    """Return a reader of whole numbers from `least` on, or "auto"."""
    number = whole(least)

    def read(raw: Any, text: bool, home: Path) -> object:
        if isinstance(raw, str) and raw.strip().lower() == "auto":
            return "auto"
        try:
            return number(raw, text, home)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return read


def read_switch(raw: Any, text: bool, home: Path) -> bool:
    """Read true or false; as text also yes, no, on, off, 1, 0."""
    if text and isinstance(raw, str):
        raw = _WORDS.get(raw.strip().lower())
    if isinstance(raw, bool):
        return raw
    raise ValueError("true or false")


def read_level(raw: Any, text: bool, home: Path) -> str:
    """Read the name of a log level, in any case."""
    if isinstance(raw, str) and raw.lower() in LOG_LEVELS:
        return raw.lower()
    raise ValueError("one of " + ", ".join(LOG_LEVELS))


def read_path(raw: Any, text: bool, home: Path) -> Path:
    """Read an absolute path; a leading "~" stands for `home`."""
    if isinstance(raw, str | Path) and "\0" not in str(raw):
        path = Path(raw)
        if path.parts[:1] == ("~",):
            path = home.joinpath(*path.parts[1:])
        if path.is_absolute():
            return path
    raise ValueError('an absolute path, or one that starts with "~/"')


def read_optional_path(raw: Any, text: bool, home: Path) -> Path | None:
    """Read an absolute path; empty text means none."""
    return None if raw is None or raw == "" else read_path(raw, text, home)


_ALIAS = re.compile(r"[A-Za-z0-9][\w.:+-]{0,95}", re.ASCII)
"""A short name. It has no slash, so it is neither a Hub id nor a path."""
_MOST_ALIASES = 256
_MOST_MODEL_BYTES = 1024


def read_aliases(raw: Any, text: bool, home: Path) -> dict[str, str]:
    """
    Read a table of short names and the models that they stand for; as text, "NAME=MODEL" with commas between them.

    A name may stand for another short name. The result has the model that each of them leads to.
    """
    if text and isinstance(raw, str):
        raw = [part for part in raw.split(",") if part.strip()]
    if isinstance(raw, list | tuple):
        pairs = [str(part).partition("=") for part in raw]
        raw = {name.strip(): model.strip() for name, mark, model in pairs if mark}
        if len(raw) != len(pairs):
            raise ValueError("NAME=MODEL, each name once, with commas between them")
    if not isinstance(raw, dict) or len(raw) > _MOST_ALIASES:
        raise ValueError(f"a table of at most {_MOST_ALIASES} short names and their models")
    return {name: _target(name, raw, home) for name in raw}


def _target(name: str, table: dict[str, Any], home: Path) -> str:
    """Return the model that a short name leads to."""
    if name == "embedded":
        raise ValueError("a table of short names: aliases.embedded is the name of the model that ships with the daemon")
    if not _ALIAS.fullmatch(name):
        raise ValueError(f"a table of short names: aliases.{name} is none (letters, digits and . _ - + : alone)")
    model: Any = name
    passed: set[str] = set()
    while isinstance(model, str) and model in table:
        if model in passed:
            raise ValueError(f"a table without loops: aliases.{name} leads back to itself")
        passed.add(model)
        model = table[model]
    if isinstance(model, str) and model.startswith("~/"):
        model = str(home / model[2:])
    good = isinstance(model, str) and model.isprintable() and 0 < len(model.encode()) <= _MOST_MODEL_BYTES
    if not good or not ("/" in model or model == "embedded"):
        what = "no Hub id, absolute directory, 'embedded' or alias"
        raise ValueError(f"a table of models: aliases.{name} leads to {model!r:.80}, which is {what}")
    return str(model)


def read_paths(raw: Any, text: bool, home: Path) -> tuple[Path, ...]:
    """Read a list of absolute paths; as text, `os.pathsep` separates them."""
    if text and isinstance(raw, str):
        raw = [part for part in raw.split(os.pathsep) if part]
    try:
        if isinstance(raw, list | tuple):
            return tuple(read_path(part, text, home) for part in raw)
    except ValueError:
        pass
    raise ValueError(f'absolute directories separated by "{os.pathsep}"' if text else "a list of absolute directories")


def read_http_listen(raw: Any, text: bool, home: Path) -> str:
    """Read where HTTP is served: nowhere, on a Unix socket, or on a port of 127.0.0.1."""
    if isinstance(raw, str):
        port = re.fullmatch(r"127\.0\.0\.1:([1-9][0-9]{0,4})", raw, re.ASCII)
        if raw in ("", "unix") or (port and int(port[1]) <= _LAST_PORT):
            return raw
    raise ValueError(f'"unix", "127.0.0.1:PORT" with a port from 1 to {_LAST_PORT}, or empty')


def read_origins(raw: Any, text: bool, home: Path) -> tuple[str, ...]:
    """Read a list of a browser's origins; as text, commas separate them."""
    if text and isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if isinstance(raw, list | tuple) and all(isinstance(one, str) and _ORIGIN.fullmatch(one) for one in raw):
        return tuple(raw)
    raise ValueError('origins such as "http://localhost:3000"' + (", separated by commas" if text else ", in a list"))


def read_hosts(raw: Any, text: bool, home: Path) -> tuple[str, ...]:
    """Read a list of host names; as text, commas separate them."""
    if text and isinstance(raw, str):
        raw = [part.strip() for part in raw.split(",") if part.strip()]
    if isinstance(raw, list | tuple) and all(isinstance(one, str) and _HOST.fullmatch(one) for one in raw):
        return tuple(one.lower() for one in raw)
    raise ValueError('host names such as "host.docker.internal"' + (", separated by commas" if text else ", in a list"))

"""
Tracebacks and library messages for the log: places, classes and numbers, but no text of an exception.

The code that raises an exception chooses its text. Parsers of JSON, grammars and templates quote their input, which is
a part of a request. So do the values of variables that a traceback on a console shows.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from logging import LogRecord
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any

from daemon.shared.log_fields import Words, cause

MAX_FRAMES = 60
"""Frames of an exception that are shown: the first half and the last half."""
MAX_CHAIN = 10
"""Exceptions of a chain that are shown."""
UNTOLD = "a library logs words that may be a request's"
"""Shown instead of a message that is not a constant of the library's code."""

_NAME = re.compile(r"[\w<>.]+")


def frames(error: BaseException) -> Words:
    """Return the traceback of an exception and of the exceptions that led to it, without their texts."""
    return Words("\n".join(_told(error)))


def _told(error: BaseException) -> Iterator[str]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < MAX_CHAIN:
        if seen:
            yield "which came of"
        seen.add(id(current))
        yield "Traceback (most recent call last):"
        yield from _frames(current)
        yield cause(current)
        if isinstance(current, BaseExceptionGroup):
            yield from (f"  of {cause(part)}" for part in current.exceptions[:MAX_CHAIN])
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _frames(error: BaseException) -> Iterator[str]:
    lines = [
        f'  File "{frame.f_code.co_filename}", line {line}, in {_name(frame.f_code)}'
        for frame, line in walk_tb(error.__traceback__)
    ]
    if len(lines) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        lines = [*lines[:half], f"  {len(lines) - MAX_FRAMES} frames", *lines[-half:]]
    yield from lines


def _name(code: CodeType) -> str:
    return code.co_qualname if _NAME.fullmatch(getattr(code, "co_qualname", "")) else code.co_name


def library_event(record: LogRecord, args: Any) -> Words:
    """
    Return a library's message for the log: the constant from its code, with only numbers filled in.

    Args:
        record: The library's record. Its call of the logger must still be on this thread's stack.
        args: The values that go into the message.
    """
    if not isinstance(record.msg, str) or not _is_constant(record):
        return Words(UNTOLD)
    try:
        return Words(record.msg % _numbers_of(args) if args else record.msg)
    except (TypeError, ValueError, KeyError):
        return Words(record.msg)


def _is_constant(record: LogRecord) -> bool:
    """Return whether the message is a constant of the function that logs it; else it was formatted before."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename == record.pathname and code.co_name == record.funcName:
            return record.msg in code.co_consts
        frame = frame.f_back
    return False


class _Untold:
    """Shown in a message instead of a value that is no number."""

    def __str__(self) -> str:
        return "…"

    __repr__ = __str__


def _numbers_of(args: Any) -> Any:
    if isinstance(args, dict):
        return {name: _number_of(value) for name, value in args.items()}
    return tuple(_number_of(value) for value in args)


def _number_of(value: object) -> object:
    return value if isinstance(value, (bool, int, float)) else _Untold()


_SHOWN = re.compile(
    r"Traceback \(most recent call last\):"
    r'|\s+File "[^"]+", line \d+,? in [\w<>.]+'
    r"|Fatal Python error: [\w ]+"
    r"|(Current thread|Thread) 0x[0-9a-f]+ \(most recent call first\):"
    r"|  <no Python frame>"
    r"|Extension modules: [\w., ]+\(total: \d+\)"
)
"""The lines that Python writes when an exception ends a program, and at a crash."""
_RAISED = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Warning))(?::.*)?")


def output_line(line: str) -> Words | None:
    """Return the places and classes of an output line of a process that knows requests; None if there are none."""
    if _SHOWN.fullmatch(line):
        return Words(line)
    raised = _RAISED.fullmatch(line)
    return Words(raised[1]) if raised else None

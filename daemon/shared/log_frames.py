"""
Exceptions as the log may show them: where they were raised and what their classes are, never what they say.

The words of an exception are chosen by the code that raises it. Parsers of JSON, grammars and templates quote what they
were given; so do the values of variables, which a traceback of a console shows.
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
"""Of one exception: the first and the last half of them are shown."""
MAX_CHAIN = 10
UNTOLD = "a library logs words that may be a request's"
"""Stands for a message that is not a constant of the library's code."""

_NAME = re.compile(r"[\w<>.]+")


def frames(error: BaseException) -> Words:
    """Return the traceback of an exception and of those that led to it, without any text of theirs."""
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
    Return what the log may say of a library's message: the constant of its code, with the numbers that go into it.

    Args:
        record: The library's record, while its call of the logger is still on this thread's stack.
        args: What goes into the message.
    """
    if not isinstance(record.msg, str) or not _is_constant(record):
        return Words(UNTOLD)
    try:
        return Words(record.msg % _numbers_of(args) if args else record.msg)
    except (TypeError, ValueError, KeyError):
        return Words(record.msg)


def _is_constant(record: LogRecord) -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename == record.pathname and code.co_name == record.funcName:
            return record.msg in code.co_consts
        frame = frame.f_back
    return False


class _Untold:
    """Stands in a message for a value that is no number."""

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
"""What Python writes when an exception ends a program, and what it writes at a crash."""
_RAISED = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt|Warning))(?::.*)?")


def output_line(line: str) -> Words | None:
    """Return what may be logged of a bare line of a process that knows requests: places, classes."""
    if _SHOWN.fullmatch(line):
        return Words(line)
    raised = _RAISED.fullmatch(line)
    return Words(raised[1]) if raised else None

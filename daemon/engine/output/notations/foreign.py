"""Tool calls of notations that only mlx-lm knows, read by its parsers under a time limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

import regex

from daemon.engine.output.notations.notation import Notation
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

MOST_SECONDS = 0.25
"""
Time limit of one regular expression of a parser. Parsers run on the MLX thread, and the time of some grows with the
cube of the text: 5 s for 16,000 characters of a model that repeats itself.
"""

_SKIPPED = "<|open|>call "
"""How calls of Kimi K3 begin, of which mlx-lm's parser leaves out those that it cannot read."""

Parser: TypeAlias = Callable[[str, Any], Any]
"""Reads the text between the marks of a call, given the tools: one call or a list of them. It may raise anything."""


def foreign(start: str, end: str, parse: Parser) -> Notation:
    """
    Return the notation of a parser of mlx-lm.

    Args:
        start, end: The marks around the text that it reads; an empty end mark means the end of the answer.
        parse: The parser.
    """
    parse = bounded(parse)

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        yield from reader.literal(start)
        pieces: list[str] = []
        mark = yield from reader.until((end,) if end else (), pieces.append)
        if not mark and end and not reader.by_model:
            raise Malformed("the end of a call is missing")
        for name, arguments, id_ in _parsed("".join(pieces), parse, calls):
            calls.whole(name, arguments, id_)

    return Notation("mlx-lm", (start,), read)


def _parsed(written: str, parse: Parser, calls: CallWriter) -> list[tuple[str, str, str]]:
    """
    Return name, arguments and id of each call in a text.

    Raises:
        Malformed: If the text is not, as a whole, calls of these tools.
    """
    try:
        parsed = parse(written, [tool.declaration() for tool in calls.tools])
        entries = parsed if isinstance(parsed, list) else [parsed]
        found = [_call(entry, {tool.name for tool in calls.tools}) for entry in entries]
    except Exception as error:  # parsers index, unpack and recurse as if models made no mistakes
        raise Malformed("the parser of mlx-lm cannot read it") from error
    if len(found) < max(1, written.count(_SKIPPED)):
        raise Malformed("mlx-lm leaves a call out")
    return found


def _call(entry: Any, names: set[str]) -> tuple[str, str, str]:
    """
    Return a call that a parser read.

    Raises:
        ValueError: If it is no call of one of the tools, or if its arguments cannot be sent.
    """
    name, arguments = entry["name"], entry.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if name not in names or not isinstance(arguments, dict):
        raise ValueError("this is no call of one of the tools")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair is no text, and could not be sent
    given = entry.get("id")
    return name, text, given if isinstance(given, str) else ""


class BoundedPattern:
    """A regular expression that raises TimeoutError after MOST_SECONDS."""

    def __init__(self, pattern: Any) -> None:
        self.pattern = pattern

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.pattern, name)
        return partial(value, timeout=MOST_SECONDS) if callable(value) else value


def bounded(parse: Parser) -> Parser:
    """
    Return a copy of a parser with a time limit for its regular expressions.

    mlx-lm's parsers keep their regular expressions as globals of their module. The copy gets a namespace of its own,
    with bounded expressions and copies of the module's other functions. mlx-lm's module stays as it is.
    """
    if not isinstance(parse, FunctionType):
        return parse
    original = vars(sys.modules[parse.__module__])
    namespace = dict(original)
    for name, value in original.items():
        if isinstance(value, regex.Pattern):
            namespace[name] = BoundedPattern(value)
        elif isinstance(value, FunctionType) and value.__globals__ is original:
            namespace[name] = _with_globals(value, namespace)
    return _with_globals(parse, namespace)


def _with_globals(function: FunctionType, namespace: dict[str, Any]) -> FunctionType:
    copy = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy

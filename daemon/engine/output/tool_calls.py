"""Reads the tool calls that a model writes between its marks, with mlx-lm's parsers under a time limit."""

from __future__ import annotations

import json
import secrets
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, TypeAlias

import regex
import structlog

from daemon.shared.log_fields import cause

MOST_CHARACTERS = 256 * 1024
"""A longer call is not read."""

MOST_SECONDS = 0.25
"""
Time limit of one regular expression of a parser. Parsers run on the MLX thread, and the time of some grows with the
cube of the text: 5 s for 16,000 characters of a model that repeats itself.
"""

_SKIPPED = ("<|open|>call ", "<function=")
"""How calls begin in notations of which mlx-lm's parsers leave out what they cannot read, or all but the first."""

_ID = string.ascii_letters + string.digits
_ID_LENGTH = 9
"""Nine letters and digits: Mistral's templates accept no other ids."""

Parser: TypeAlias = Callable[[str, Any], Any]
"""Reads the text between the marks of a call, given the tools: one call or a list of them. It may raise anything."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Tool:
    """
    A function that a request offers to the model.

    Attributes:
        name: Its name.
        description: When to use it; may be empty.
        parameters: JSON schema of its arguments; empty if the request has none.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    def declaration(self) -> dict[str, Any]:
        """Return it as chat templates and mlx-lm's parsers expect it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """
    A call that the model made.

    Attributes:
        index: Its position among the calls of the answer, from 0.
        id: The model's own name for it, or else 9 random letters and digits.
        name: Name of the tool.
        arguments_json: A JSON object as text.
    """

    index: int
    id: str
    name: str
    arguments_json: str


def read(written: str, parse: Parser, tools: Sequence[Tool], first: int = 0) -> list[ToolCall] | None:
    """
    Return the calls in a text that a model wrote; None if the text is not, as a whole, calls of these tools.

    Args:
        written: The text between the marks.
        parse: The parser of this notation.
        tools: The request's tools.
        first: Index of the first call.
    """
    if len(written) > MOST_CHARACTERS:
        return None
    try:
        parsed = parse(written, [tool.declaration() for tool in tools])
        names = {tool.name for tool in tools}
        entries = parsed if isinstance(parsed, list) else [parsed]
        calls = [_call(entry, names, index) for index, entry in enumerate(entries, first)]
        return calls if len(calls) >= max(1, *(written.count(begin) for begin in _SKIPPED)) else None
    except Exception as error:  # parsers index, unpack and recurse as if models made no mistakes
        log.info("tool_call_unparsed", error=cause(error))
        return None


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


def _call(entry: Any, names: set[str], index: int) -> ToolCall:
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
    made = "".join(secrets.choice(_ID) for _ in range(_ID_LENGTH))
    return ToolCall(index, given if isinstance(given, str) and given else made, name, text)

"""
Tool calls that look like Python: `[get_weather(city="Bergen", days=2), get_time()]`.

LFM2 writes them between `<|tool_call_start|>` and `<|tool_call_end|>`, Llama 3.2 and 4 without marks as their whole
answer. OLMo 3 writes no brackets, but a call on each line between `<function_calls>` and `</function_calls>`. Values
are Python literals, or their JSON spelling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daemon.engine.output.argument_types import type_of
from daemon.engine.output.json_reader import quoted
from daemon.engine.output.json_schema import within
from daemon.engine.output.notations.notation import Notation, read_end, read_name
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Choice,
    Json,
    Part,
    Sequence,
    Text,
    arguments,
    listed,
    member_name,
    members,
    python_words,
)
from daemon.engine.output.python_reader import read_python
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter, Tool

_START, _END = "<|tool_call_start|>", "<|tool_call_end|>"
_CALLS, _CALLS_END = "<function_calls>", "</function_calls>"
_KEY = re.compile(r"[\w.$-]*")


def _read_marked(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_START)
    yield from reader.space()
    yield from read_list(reader, calls)
    yield from read_end(reader, _END, before=(_START,))


def read_list(reader: Reader, calls: CallWriter) -> Steps[None]:
    """
    Read a list of calls in brackets.

    Raises:
        Malformed: If it is none.
    """
    yield from reader.literal("[")
    while True:
        yield from reader.space()
        yield from read_python_call(reader, calls)
        # Strings may have quotes without an escape. What follows tells whether the call was read up to its end.
        if not ((yield from reader.follows(",", "]")) or reader.exhausted):
            raise Malformed("a call is followed by neither a comma nor an end")
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            break
    yield from reader.literal("]")


def _read_lines(reader: Reader, calls: CallWriter) -> Steps[None]:
    """Read a block of calls, with a line end between two of them."""
    yield from reader.literal(_CALLS)
    yield from reader.space()
    while True:
        yield from read_python_call(reader, calls)
        if (yield from reader.follows(_CALLS_END)) or reader.exhausted:
            break
        if (yield from reader.peek()) not in ("\n", "\r"):
            raise Malformed("a call is followed by neither a line end nor a mark")
        calls.end()
        yield from reader.space()
    yield from read_end(reader, _CALLS_END)
    calls.end()


def read_python_call(reader: Reader, calls: CallWriter, method: str = "") -> Steps[None]:
    """
    Read a call such as `get_weather(city="Bergen")`. It has begun then, and the caller ends it.

    Args:
        reader: Its next character begins the name.
        calls: Takes the call.
        method: What follows the name of the tool, such as `.call`.

    Raises:
        Malformed: If it is no such call, or has an argument without a name.
    """
    name = yield from read_name(reader)
    yield from reader.literal("(")
    calls.begin(name.removesuffix(method))
    calls.write("{")
    names: set[str] = set()
    while True:
        yield from reader.space()
        if (yield from reader.maybe(")")):
            break
        key = yield from _read_key(reader)
        if key in names:
            raise Malformed("an argument comes twice")
        calls.write(f'{", " if names else ""}"{quoted(key)}": ')
        names.add(key)
        yield from read_python(reader, calls.write)
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            yield from reader.literal(")")
            break
    calls.write("}")


def _read_key(reader: Reader) -> Steps[str]:
    pieces: list[str] = []
    yield from reader.run(_KEY, pieces.append)
    if not any(pieces):
        raise Malformed("an argument has a name")
    yield from reader.space()
    yield from reader.literal("=")
    return "".join(pieces)


def _call(tool: Tool) -> Part:
    """Return the syntax of a call. Values are JSON, which the parser reads as well, or words of Python."""
    root = arguments(tool)
    parts = members(root, lambda key, schema: _pair(key, schema, root), ", ")
    return Sequence((Text(f"{tool.name}("), listed(parts, ", "), Text(")")))


def _pair(key: str | None, schema: Any, root: Mapping[str, Any]) -> Part:
    name = member_name(key, _KEY, "[A-Za-z_][A-Za-z0-9_]{0,63}")
    value = Choice((Json(within(schema, root)), *python_words(type_of([schema], root))))
    return Sequence((name, Text("="), value))


LFM2 = Notation("LFM2", (_START,), _read_marked, CallSyntax(_call, f"{_START}[", f"]{_END}", between=", "))
OLMO_3 = Notation("OLMo 3", (_CALLS,), _read_lines, CallSyntax(_call, _CALLS, _CALLS_END, between="\n"))
PYTHONIC = Notation("pythonic Llama", (), read_list, CallSyntax(_call, "[", "]", between=", "), opens_answer=True)

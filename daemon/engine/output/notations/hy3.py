"""
Tool calls of Hunyuan 3 (Hy3): those of GLM 4.5 in a block, and marks that end with the name of their release.

`<tool_calls:R>\\n<tool_call:R>NAME<tool_sep:R>\\n<arg_key:R>KEY</arg_key:R>\\n<arg_value:R>VALUE</arg_value:R>\\n`, and
then the end marks. R is `opensource`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daemon.engine.output.notations.glm import Tags, read_pairs
from daemon.engine.output.notations.notation import Notation, read_end
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Part,
    Sequence,
    Text,
    arguments,
    member_name,
    members,
    raw_value,
)
from daemon.engine.output.reader import Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter, NamedArguments, Tool

_BLOCK, _BLOCK_END = "<tool_calls:opensource>", "</tool_calls:opensource>"
_CALL, _CALL_END = "<tool_call:opensource>", "</tool_call:opensource>"
_SEPARATOR = "<tool_sep:opensource>"
_KEY, _KEY_END = "<arg_key:opensource>", "</arg_key:opensource>"
_VALUE, _VALUE_END = "<arg_value:opensource>", "</arg_value:opensource>"
_TAGS = Tags(_KEY, _KEY_END, _VALUE, _VALUE_END, _CALL_END)


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_BLOCK)
    yield from reader.space()
    yield from reader.literal(_CALL)
    while True:
        tool = calls.begin((yield from read_until(reader, _SEPARATOR)).strip())
        yield from read_pairs(reader, NamedArguments(tool, calls), _TAGS)
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(_CALL)):
            break
    yield from read_end(reader, _BLOCK_END, before=(_BLOCK,))


def _call(tool: Tool) -> Part:
    root = arguments(tool)
    parts = members(root, lambda name, schema: _pair(name, schema, root))
    return Sequence((Text(f"{_CALL}{tool.name}{_SEPARATOR}\n"), *parts, Text(f"{_CALL_END}\n")))


def _pair(name: str | None, schema: Any, root: Mapping[str, Any]) -> Part:
    value = raw_value(schema, root, f"{_VALUE_END}\n")
    return Sequence((Text(_KEY), member_name(name), Text(f"{_KEY_END}\n{_VALUE}"), value))


HY3 = Notation("Hy3", (_BLOCK,), _read, CallSyntax(_call, f"{_BLOCK}\n", _BLOCK_END, between=""))

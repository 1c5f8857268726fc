"""
Tool calls of GLM 4.5 to 5, Laguna and Ling: a name, then a tag for each key and each value.

`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, in GLM 4.5 and 4.6 with a line end
after the name and each tag. A value is what stands between its tags, spaces and line ends included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.engine.output.notations.notation import Notation, read_name
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Free,
    Part,
    Pattern,
    Sequence,
    Text,
    arguments,
    members,
    raw_value,
)
from daemon.engine.output.reader import Reader, Steps, read_until, read_value
from daemon.engine.output.tool_calls import CallWriter, NamedArguments, Tool


class Tags(NamedTuple):
    """The tags around a key and its value, and the mark that ends the call."""

    key: str
    key_end: str
    value: str
    value_end: str
    call_end: str


_START, _END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END = "<arg_key>", "</arg_key>"
_VALUE, _VALUE_END = "<arg_value>", "</arg_value>"
_TAGS = Tags(_KEY, _KEY_END, _VALUE, _VALUE_END, _END)


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_START)
    tool = calls.begin((yield from read_name(reader)))
    yield from read_pairs(reader, NamedArguments(tool, calls), _TAGS)
    calls.end()


def read_pairs(reader: Reader, writer: NamedArguments, tags: Tags) -> Steps[None]:
    """Read keys and values in tags, with white space around them, and the end of the call."""
    yield from reader.space()
    while (yield from reader.maybe(tags.key)):
        kind = writer.name((yield from read_until(reader, tags.key_end)))
        yield from reader.space()
        yield from reader.literal(tags.value)
        sink, end = writer.text(kind)
        yield from read_value(reader, sink, (tags.value_end,), (tags.key, tags.call_end))
        end()
        yield from reader.space()
    writer.end()
    yield from reader.literal(tags.call_end)  # without it, arguments may be missing


def _call(tool: Tool) -> Part:
    root = arguments(tool)
    key = Pattern(r"[^<>\s]{1,100}")
    unknown = Sequence((_LINE, Text(_KEY), key, Text(_KEY_END), _LINE, Text(_VALUE), Free(_VALUE_END)))
    return Sequence((Text(tool.name), *members(root, lambda name, schema: _pair(name, schema, root), unknown), _LINE))


def _pair(name: str, schema: Any, root: Mapping[str, Any]) -> Part:
    return Sequence((_LINE, Text(f"{_KEY}{name}{_KEY_END}"), _LINE, Text(_VALUE), raw_value(schema, root, _VALUE_END)))


_LINE = Pattern(r"\n?")
GLM = Notation("GLM", (_START,), _read, CallSyntax(_call, _START, _END, apart="\n"))

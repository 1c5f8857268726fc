"""
Tool calls of GLM 4.5 to 5, Laguna, Ling and LongCat: a name, then a tag for each key and each value.

`<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, in GLM 4.5 and 4.6 with a line end
after the name and each tag. A value is what stands between its tags, spaces and line ends included. The tags of LongCat
have other names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from daemon.engine.output.notations.notation import Notation, read_name
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Part,
    Pattern,
    Sequence,
    Text,
    arguments,
    member_name,
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


def _in_tags(name: str, start: str, tags: Tags) -> Notation:
    """Return the notation of calls with these tags."""

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        yield from reader.literal(start)
        tool = calls.begin((yield from read_name(reader)))
        yield from read_pairs(reader, NamedArguments(tool, calls), tags)
        calls.end()

    def call(tool: Tool) -> Part:
        root = arguments(tool)

        def pair(key: str | None, schema: Any) -> Part:
            name = member_name(key)
            value = raw_value(schema, root, tags.value_end)
            return Sequence((_LINE, Text(tags.key), name, Text(tags.key_end), _LINE, Text(tags.value), value))

        return Sequence((Text(tool.name), *members(root, pair), _LINE))

    return Notation(name, (start,), read, CallSyntax(call, start, tags.call_end, apart="\n"))


_LINE = Pattern(r"\n?")
GLM = _in_tags("GLM", "<tool_call>", Tags("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "</tool_call>"))
LONGCAT = _in_tags(
    "LongCat",
    "<longcat_tool_call>",
    Tags(
        "<longcat_arg_key>",
        "</longcat_arg_key>",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
        "</longcat_tool_call>",
    ),
)

"""
Tool calls of MiniMax M2, of DeepSeek V3.2 and V4, and of Muse: a block of invocations, with a tag for each argument.

```
<minimax:tool_call>
<invoke name="NAME">
<parameter name="KEY">VALUE</parameter>
</invoke>
</minimax:tool_call>
```

The others write other marks. DeepSeek says in the tag of an argument whether it is a string. A block of Muse follows a
header with the name of the tool, so that calls cannot be required of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from daemon.engine.output.argument_types import ArgumentType, type_of
from daemon.engine.output.json_schema import within
from daemon.engine.output.notations.notation import Notation, read_end
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Choice,
    Free,
    Json,
    Part,
    Sequence,
    Text,
    arguments,
    member_name,
    members,
    no_strings,
    raw_value,
    refuse_limits,
)
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until, read_value
from daemon.engine.output.tool_calls import CallWriter, NamedArguments, Tool

_NAME = re.compile(r"""\s*name\s*=\s*(?:"([^"]*)"|'([^']*)')\s*""")
_KEY = re.compile(r'[^<>"\n]*')
"""A name that an argument can have."""
_IS_STRING = re.compile(r"""string\s*=\s*["'](true|false)["']\s*""")
_TEXT = ArgumentType(frozenset({"string"}))
_JSON = ArgumentType(frozenset({"number", "boolean", "null", "object", "array"}))


@dataclass(frozen=True, slots=True)
class _Tags:
    """
    The tags of an invocation and of an argument, up to their attributes.

    Attributes:
        states_strings: Whether the tag of an argument says whether it is a string.
        headed: Whether a header comes before a block.
    """

    invoke: str
    invoke_end: str
    parameter: str
    parameter_end: str
    states_strings: bool = False
    headed: bool = False


def _invocations(name: str, blocks: dict[str, str], tags: _Tags) -> Notation:
    """
    Return a notation.

    Args:
        name: Its name.
        blocks: The marks that begin a block, each with the mark that ends it. Calls that are required have the first.
        tags: Its other marks.
    """

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        start = yield from reader.maybe(*blocks)
        yield from reader.space()
        yield from reader.literal(tags.invoke)
        while True:
            yield from _read_invocation(reader, calls, tags)
            calls.end()
            yield from reader.space()
            if not (yield from reader.maybe(tags.invoke)):
                break
        yield from read_end(reader, blocks[start], before=tuple(blocks))

    def call(tool: Tool) -> Part:
        root = arguments(tool)
        parts = members(root, lambda key, schema: _parameter(key, schema, root, tags))
        return Sequence((Text(f'{tags.invoke} name="{tool.name}">\n'), *parts, Text(f"{tags.invoke_end}\n")))

    start = next(iter(blocks))
    syntax = None if tags.headed else CallSyntax(call, f"{start}\n", blocks[start], between="")
    return Notation(name, tuple(blocks), read, syntax)


def _parameter(key: str | None, schema: Any, root: Mapping[str, Any], tags: _Tags) -> Part:
    """Return the syntax of an argument; of any name for None."""
    end = f"{tags.parameter_end}\n"
    name = member_name(key, _KEY, r'[^<>"\s]{1,100}')
    if tags.states_strings:
        value: Part = Choice(tuple(_stated(type_of([schema], root), schema, root, end)))
    else:
        value = Sequence((Text('">'), raw_value(schema, root, end)))
    return Sequence((Text(f'{tags.parameter} name="'), name, value))


def _stated(kind: ArgumentType, schema: Any, root: Mapping[str, Any], end: str) -> Iterator[Part]:
    """Yield the syntax of values behind the word that says whether they are strings."""
    if "string" in kind.kinds:
        only: list[Part] = [Text(text + end) for text in sorted(kind.strings or ())]
        if not only:
            refuse_limits(kind)
        yield from (Sequence((Text('" string="true">'), text)) for text in only or [Free(end)])
    if kind.kinds != {"string"}:
        others = no_strings(kind) if "string" in kind.kinds else [Json(within(schema, root))]
        yield from (Sequence((Text('" string="false">'), other, Text(end))) for other in others)


def _read_invocation(reader: Reader, calls: CallWriter, tags: _Tags) -> Steps[None]:
    match = _NAME.fullmatch((yield from read_until(reader, ">")))
    if match is None:
        raise Malformed("an invocation has a name")
    writer = NamedArguments(calls.begin(match[1] or match[2] or ""), calls)
    while True:
        yield from reader.space()
        if not (yield from reader.maybe(tags.parameter)):
            break
        attributes = yield from read_until(reader, ">")
        match = _NAME.match(attributes)
        if match is None:
            raise Malformed("an argument has a name")
        kind = writer.name(match[1] or match[2] or "")
        stated = _IS_STRING.fullmatch(attributes, match.end())
        if stated:
            kind = _TEXT if stated[1] == "true" else _JSON
        sink, end = writer.text(kind)
        yield from read_value(reader, sink, (tags.parameter_end,), (tags.parameter, tags.invoke_end))
        end()
    yield from reader.literal(tags.invoke_end)
    writer.end()


MINIMAX_M2 = _invocations(
    "MiniMax M2",
    {"<minimax:tool_call>": "</minimax:tool_call>"},
    _Tags("<invoke", "</invoke>", "<parameter", "</parameter>"),
)
_V32 = {"<｜DSML｜function_calls>": "</｜DSML｜function_calls>"}
_V4 = {"<｜DSML｜tool_calls>": "</｜DSML｜tool_calls>"}
_DSML_TAGS = _Tags(
    "<｜DSML｜invoke", "</｜DSML｜invoke>", "<｜DSML｜parameter", "</｜DSML｜parameter>", states_strings=True
)
DSML = _invocations("DeepSeek V3.2", {**_V32, **_V4}, _DSML_TAGS)
DSML_V4 = _invocations("DeepSeek V4", {**_V4, **_V32}, _DSML_TAGS)
"""Each is read in the blocks of both. Calls that are required are in its own."""

MUSE = _invocations(
    "Muse",
    {"<atem:function_calls>": "</atem:function_calls>"},
    _Tags("<atem:invoke", "</atem:invoke>", "<atem:parameter", "</atem:parameter>", headed=True),
)

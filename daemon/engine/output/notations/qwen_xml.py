"""
Tool calls of Qwen 3 Coder, Qwen 3.5, Nemotron 3, Step 3.5 and Seed-OSS.

```
<tool_call>
<function=NAME>
<parameter=KEY>
VALUE
</parameter>
</function>
</tool_call>
```

One line end on either side of a value belongs to the marks. Seed-OSS writes none, and other outer marks. Qwen 3 Coder
often leaves out the first mark behind a text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until, read_value
from daemon.engine.output.tool_calls import CallWriter, NamedArguments, Tool

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_KEY = re.compile(r"[^<>\n]*")
"""A name that a parameter can have."""


def in_tags(name: str, start: str, end: str, line: str, *, bare: bool = False) -> Notation:
    """
    Return the notation with these outer marks.

    Args:
        name: Its name.
        start, end: The outer marks.
        line: The text on either side of a value.
        bare: Whether a block may begin without its first mark. It then needs the last one, or the end of the answer.
    """

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        yield from reader.maybe(start)
        yield from _read_function(reader, calls, line)
        while (yield from reader.follows(_FUNCTION)):
            calls.end()
            yield from _read_function(reader, calls, line)
        yield from read_end(reader, end, before=(start,))
        calls.end()

    def call(tool: Tool) -> Part:
        root = arguments(tool)
        parts = members(root, lambda key, schema: _parameter(key, schema, root, line))
        return Sequence((Text(f"{_FUNCTION}{tool.name}>\n"), *parts, Text(_FUNCTION_END)))

    syntax = CallSyntax(call, f"{start}\n", f"\n{end}", between="\n", apart="\n")
    return Notation(name, (start, _FUNCTION) if bare else (start,), read, syntax)


def _parameter(key: str | None, schema: Any, root: Mapping[str, Any], line: str) -> Part:
    """Return the syntax of a parameter, with `line` on either side of its value; of any name for None."""
    value = raw_value(schema, root, f"{line}{_PARAMETER_END}\n")
    return Sequence((Text(_PARAMETER), member_name(key, _KEY), Text(f">{line}"), value))


def _read_function(reader: Reader, calls: CallWriter, line: str) -> Steps[None]:
    yield from reader.space()
    yield from reader.literal(_FUNCTION)
    tool = calls.begin((yield from read_until(reader, ">")).strip())
    writer = NamedArguments(tool, calls)
    while True:
        yield from reader.space()
        mark = yield from reader.maybe(_PARAMETER, _FUNCTION_END)
        if mark != _PARAMETER:
            break
        written = yield from read_until(reader, ">")
        known = tool.parameters.get("properties")
        kind = writer.name(written if isinstance(known, dict) and written in known else written.strip())
        yield from reader.maybe(line)
        sink, end = writer.text(kind)
        ends = (line + _PARAMETER_END, _PARAMETER_END)
        yield from read_value(reader, sink, ends, (_PARAMETER, _FUNCTION_END))
        end()
    if not mark:
        raise Malformed("a call does not end")
    writer.end()


QWEN_XML = in_tags("Qwen 3 Coder", "<tool_call>", "</tool_call>", "\n", bare=True)
SEED = in_tags("Seed-OSS", "<seed:tool_call>", "</seed:tool_call>", "")

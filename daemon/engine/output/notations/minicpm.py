"""
Tool calls of MiniCPM 5: an element for each call, with an element for each argument.

`<function name="NAME"><param name="KEY">VALUE</param></function>`. A text with `<`, `&` or a line end is in a CDATA
section: `<param name="KEY"><![CDATA[TEXT]]></param>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from daemon.engine.output.argument_types import type_of
from daemon.engine.output.notations.notation import Notation
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Choice,
    Free,
    Part,
    Pattern,
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

_FUNCTION, _FUNCTION_END = "<function name=", "</function>"
_PARAM, _PARAM_END = "<param name=", "</param>"
_CDATA, _CDATA_ENDS = "<![CDATA[", (f"]]>{_PARAM_END}", f"]]>\n{_PARAM_END}")
_NAME = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*""")
_KEY = re.compile(r'[^<>"\n]*')
"""A name that an argument can have."""
_MARKUP = re.compile("[<&\n]")


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_FUNCTION)
    writer = NamedArguments(calls.begin((yield from _read_name(reader))), calls)
    yield from reader.space()
    while (yield from reader.maybe(_PARAM)):
        sink, end = writer.text(writer.name((yield from _read_name(reader))))
        ends: tuple[str, ...] = (_PARAM_END,)
        if (yield from reader.follows(_CDATA)):
            yield from reader.space()
            yield from reader.literal(_CDATA)
            ends = _CDATA_ENDS
        yield from read_value(reader, sink, ends, (_PARAM, _FUNCTION_END))
        end()
        yield from reader.space()
    yield from reader.literal(_FUNCTION_END)
    writer.end()
    calls.end()


def _read_name(reader: Reader) -> Steps[str]:
    """Return the name in a tag, which is read to its end."""
    if (match := _NAME.fullmatch((yield from read_until(reader, ">")))) is None:
        raise Malformed("a call and an argument have a name")
    return match[1] or match[2] or ""


def _call(tool: Tool) -> Part:
    root = arguments(tool)
    parts = members(root, lambda key, schema: _param(key, schema, root))
    return Sequence((Text(f'"{tool.name}">'), *parts, Text(_FUNCTION_END)))


def _param(key: str | None, schema: Any, root: Mapping[str, Any]) -> Part:
    name = member_name(key, _KEY, r'[^<>"\s]{1,100}')
    return Sequence((Text(f'{_PARAM}"'), name, Text('">'), _value(schema, root)))


def _value(schema: Any, root: Mapping[str, Any]) -> Part:
    """Return the syntax of a value and its end: text without markup, a CDATA section, or JSON."""
    kind = type_of([schema], root)
    if kind.strings is not None:
        listed = [Text(_written(text)) for text in sorted(kind.strings)]
        return Choice((*listed, *(Sequence((value, Text(_PARAM_END))) for value in no_strings(kind))))
    if "string" in kind.kinds:
        refuse_limits(kind)
        return _ANY_TEXT
    return raw_value(schema, root, _PARAM_END)


def _written(text: str) -> str:
    return f"{_CDATA}{text}{_CDATA_ENDS[0]}" if _MARKUP.search(text) else text + _PARAM_END


_ANY_TEXT = Choice(
    (
        Text(_PARAM_END),
        Sequence((Pattern(r"[^<&\n]+"), Text(_PARAM_END))),
        Sequence((Text(_CDATA), Free(_CDATA_ENDS[0]))),
    )
)
"""A text and its end. Text without a section has no markup, so that no other text begins like a section."""

MINICPM_5 = Notation("MiniCPM 5", (_FUNCTION,), _read, CallSyntax(_call, _FUNCTION, apart="\n"))

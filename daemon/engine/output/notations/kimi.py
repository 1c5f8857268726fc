"""
Tool calls of Kimi K2: a section of calls with ids that hold the tool's name, and JSON arguments.

A section begins with `<|tool_calls_section_begin|>` and ends with `<|tool_calls_section_end|>`. A call in it is
`<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`. Some answers leave out the marks
of the section, and the last one of a call.
"""

from __future__ import annotations

import re

from daemon.engine.output.notations.notation import Notation, read_arguments, read_end
from daemon.engine.output.notations.syntax import CallSyntax, Json, Part, Pattern, Sequence, Text, arguments
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter, Tool

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END = "<|tool_call_begin|>", "<|tool_call_end|>"
_ARGUMENTS = "<|tool_call_argument_begin|>"
_ID = re.compile(r"(?:functions\.)?(.+?)(?::\d+)?", re.DOTALL)


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    in_section = bool((yield from reader.maybe(_SECTION)))
    while True:
        yield from reader.space()
        yield from reader.literal(_CALL)
        id_ = (yield from read_until(reader, _ARGUMENTS)).strip()
        match = _ID.fullmatch(id_)
        if match is None:
            raise Malformed("a call has an id")
        calls.begin(match[1], id_)
        yield from read_arguments(reader, calls)
        yield from read_end(reader, _CALL_END, before=(_SECTION_END, _CALL))
        calls.end()
        if not (yield from reader.follows(_CALL)):
            break
    if in_section or (yield from reader.follows(_SECTION_END)):
        yield from read_end(reader, _SECTION_END)


def _call(tool: Tool) -> Part:
    index = Pattern("[0-9]{1,4}")
    end = Text(_CALL_END)
    return Sequence((Text(f"{_CALL}functions.{tool.name}:"), index, Text(_ARGUMENTS), Json(arguments(tool)), end))


KIMI_K2 = Notation("Kimi K2", (_SECTION, _CALL), _read, CallSyntax(_call, _SECTION, _SECTION_END, between=""))

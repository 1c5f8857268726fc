"""Tool calls of Command R and R+: the word `Action:` and a list of calls as a block of code."""

from __future__ import annotations

import re

from daemon.engine.output.notations.notation import FENCE, JsonKeys, Notation, read_json_calls
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

_START = "Action:"
_KEYS = JsonKeys(name=("tool_name",), arguments=("parameters",))


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_START)
    yield from reader.space()
    yield from reader.literal(FENCE)
    yield from reader.maybe("json")
    yield from reader.space()
    if (yield from reader.peek()) != "[":
        raise Malformed("the calls are a list")
    yield from read_json_calls(reader, calls, _KEYS)
    yield from reader.space()
    yield from reader.maybe(FENCE)


COMMAND_R = Notation(
    "Command R",
    (_START,),
    _read,
    CallSyntax(
        json_call('{"tool_name": "', '", "parameters": ', "}"),
        f"{_START} {FENCE}json\n[\n    ",
        f"\n]{FENCE}",
        between=",\n    ",
    ),
    sure=re.compile(rf"{_START}\s*{FENCE}(?:json)?\s*\["),
)

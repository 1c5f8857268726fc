"""
Tool calls of Mistral's models, old and new.

Since 2025 each call has its mark: `[TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}`, where the id is left out by most models.
Before, one mark begins a list: `[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}, …]`. Neither has an end mark.
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import JsonKeys, Notation, read_arguments, read_json_calls
from daemon.engine.output.notations.syntax import (
    CallSyntax,
    Json,
    Maybe,
    Part,
    Pattern,
    Sequence,
    Text,
    arguments,
    json_call,
)
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter, Tool

START, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
_ID = "[CALL_ID]"
_LISTED = JsonKeys(id_last=True)


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(START)
    yield from reader.space()
    ahead = yield from reader.peek()
    if ahead in ("[", "{"):
        before = calls.count
        yield from read_json_calls(reader, calls, _LISTED)
        if calls.count == before:
            calls.end()
        return
    name: list[str] = []
    id_: list[str] = []
    mark = yield from reader.until((_ID, ARGUMENTS, "{", "\n"), name.append)
    if mark == _ID:
        mark = yield from reader.until((ARGUMENTS, "{", "\n"), id_.append)
    if mark != ARGUMENTS:
        raise Malformed("a call has arguments")
    calls.begin("".join(name).strip(), "".join(id_).strip())
    yield from read_arguments(reader, calls)
    calls.end()


_MADE = Pattern("[A-Za-z0-9]{9}")
"""An id. Most models leave it out."""


def _call(tool: Tool) -> Part:
    id_ = Sequence((Text(_ID), _MADE))
    return Sequence((Text(tool.name), Maybe(id_), Text(ARGUMENTS), Json(arguments(tool))))


def _listed_call(tool: Tool) -> Part:
    call = json_call('{"name": "', '", "arguments": ', "")(tool)
    return Sequence((call, Maybe(Sequence((Text(', "id": "'), _MADE, Text('"')))), Text("}")))


MISTRAL = Notation("Mistral", (START,), _read, CallSyntax(_call, START, apart=""))
MISTRAL_LIST = Notation(
    "Mistral, older",
    (START,),
    _read,
    CallSyntax(_listed_call, f"{START}[", "]", between=", "),
)
"""The same for models without the token `[ARGS]`."""

"""
Tool calls of Hunyuan's dense models: a block of calls, each a name and its arguments as a block of code.

`<tool_calls><tool_call>NAME`, a line end, the arguments as JSON in a fence, `</tool_call>`, and `</tool_calls>` behind
the last call. Hunyuan A13B writes a JSON list between the outer marks (`json_marked.py`).
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import Notation, read_arguments, read_end
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter

_BLOCK, _BLOCK_END = "<tool_calls>", "</tool_calls>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FENCE = "```"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_BLOCK)
    yield from reader.space()
    yield from reader.literal(_CALL)
    while True:
        calls.begin((yield from read_until(reader, "\n")).strip())
        yield from reader.literal(_FENCE)
        yield from reader.maybe("json")
        yield from read_arguments(reader, calls)
        yield from reader.space()
        yield from reader.literal(_FENCE)
        yield from read_end(reader, _CALL_END, before=(_CALL, _BLOCK_END))
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(_CALL)):
            break
    yield from read_end(reader, _BLOCK_END)


HUNYUAN = Notation(
    "Hunyuan",
    (_BLOCK,),
    _read,
    CallSyntax(json_call(_CALL, f"\n{_FENCE}json\n", f"\n{_FENCE}{_CALL_END}"), _BLOCK, _BLOCK_END, between="\n"),
)

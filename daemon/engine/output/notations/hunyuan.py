"""
Tool calls of Hunyuan's dense models: a block of calls, each a name and its arguments as a block of code.

`<tool_calls><tool_call>NAME`, a line end, the arguments as JSON in a fence, `</tool_call>`, and `</tool_calls>` behind
the last call. Hunyuan A13B writes a JSON list between the outer marks (`json_marked.py`).
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import FENCE, Notation, read_block, read_fenced_call
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

_BLOCK = "<tool_calls>", "</tool_calls>"
_CALL = "<tool_call>", "</tool_call>"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from read_block(reader, calls, _BLOCK, _CALL, read_fenced_call)


HUNYUAN = Notation(
    "Hunyuan",
    _BLOCK[:1],
    _read,
    CallSyntax(json_call(_CALL[0], f"\n{FENCE}json\n", f"\n{FENCE}{_CALL[1]}"), *_BLOCK, between="\n"),
)

"""
Tool calls of DeepSeek V3, R1 and V3.1: a block of calls with JSON arguments.

V3.1 writes `NAME`, a separator and the arguments. V3 and R1 write `function`, the separator, the name, and the
arguments as a block of code. V3.2 has another notation (`invoke.py`).
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import FENCE, Notation, read_arguments, read_block, read_fenced_call
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter

_BLOCK = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from read_block(reader, calls, _BLOCK, _CALL, _read_call)


def _read_call(reader: Reader, calls: CallWriter) -> Steps[None]:
    name = (yield from read_until(reader, _SEPARATOR)).strip()
    if (yield from reader.follows("{")):
        calls.begin(name)
        yield from read_arguments(reader, calls)
        return
    if name != "function":
        raise Malformed("a call has arguments")
    yield from read_fenced_call(reader, calls)


DEEPSEEK_V3 = Notation(
    "DeepSeek V3",
    _BLOCK[:1],
    _read,
    CallSyntax(
        json_call(f"{_CALL[0]}function{_SEPARATOR}", f"\n{FENCE}json\n", f"\n{FENCE}{_CALL[1]}"),
        *_BLOCK,
        between="\n",
    ),
)
DEEPSEEK_V31 = Notation(
    "DeepSeek V3.1",
    _BLOCK[:1],
    _read,
    CallSyntax(json_call(_CALL[0], _SEPARATOR, _CALL[1]), *_BLOCK, between=""),
)

"""
Tool calls of DeepSeek V3, R1 and V3.1: a block of calls with JSON arguments.

V3.1 writes `NAME`, a separator and the arguments. V3 and R1 write `function`, the separator, the name, and the
arguments as a block of code. V3.2 has another notation (`invoke.py`).
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import Notation, read_arguments, read_end
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter

_BLOCK, _BLOCK_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"
_FENCE = "```"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_BLOCK)
    yield from reader.space()
    yield from reader.literal(_CALL)
    while True:
        yield from _read_call(reader, calls)
        yield from read_end(reader, _CALL_END, before=(_BLOCK_END, _CALL))
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(_CALL)):
            break
    yield from read_end(reader, _BLOCK_END)


def _read_call(reader: Reader, calls: CallWriter) -> Steps[None]:
    name = (yield from read_until(reader, _SEPARATOR)).strip()
    if (yield from reader.follows("{")):
        calls.begin(name)
        yield from read_arguments(reader, calls)
        return
    if name != "function":
        raise Malformed("a call has arguments")
    calls.begin((yield from read_until(reader, "\n")).strip())
    yield from reader.literal(_FENCE)
    yield from reader.maybe("json")
    yield from read_arguments(reader, calls)
    yield from reader.space()
    yield from reader.literal(_FENCE)


DEEPSEEK_V3 = Notation(
    "DeepSeek V3",
    (_BLOCK,),
    _read,
    CallSyntax(
        json_call(f"{_CALL}function{_SEPARATOR}", "\n```json\n", f"\n```{_CALL_END}"), _BLOCK, _BLOCK_END, between="\n"
    ),
)
DEEPSEEK_V31 = Notation(
    "DeepSeek V3.1",
    (_BLOCK,),
    _read,
    CallSyntax(json_call(_CALL, _SEPARATOR, _CALL_END), _BLOCK, _BLOCK_END, between=""),
)

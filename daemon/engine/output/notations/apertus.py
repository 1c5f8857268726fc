"""Tool calls of Apertus: a list between marks, `[{"NAME": {…}}, …]`, with names as keys."""

from __future__ import annotations

import json

from daemon.engine.output.json_reader import read_string
from daemon.engine.output.notations.notation import Notation, read_arguments, read_end
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

_START, _END = "<|tools_prefix|>", "<|tools_suffix|>"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_START)
    yield from reader.space()
    yield from reader.literal("[")
    while True:
        yield from reader.space()
        yield from reader.literal("{")
        yield from reader.space()
        name: list[str] = []
        yield from read_string(reader, name.append)
        calls.begin(json.loads("".join(name)))
        yield from reader.space()
        yield from reader.literal(":")
        yield from read_arguments(reader, calls)
        yield from reader.space()
        yield from reader.literal("}")
        calls.end()
        yield from reader.space()
        if not (yield from reader.maybe(",")):
            break
    yield from reader.literal("]")
    yield from read_end(reader, _END)


APERTUS = Notation(
    "Apertus", (_START,), _read, CallSyntax(json_call('{"', '": ', "}"), f"{_START}[", f"]{_END}", between=", ")
)

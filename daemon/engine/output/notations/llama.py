"""
Tool calls of Llama 3.1 to 3.3: the whole answer is `{"name": …, "parameters": {…}}`, without marks.

Some answers have several, with a semicolon or a line end between them. The mark `<|python_tag|>` may come first; it
also begins calls of built-in tools, such as `brave_search.call(query="…")`.
"""

from __future__ import annotations

from daemon.engine.output.notations.notation import Notation, read_json_call
from daemon.engine.output.notations.pythonic import read_python_call
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

_TAG = "<|python_tag|>"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.maybe(_TAG)
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        yield from read_python_call(reader, calls, ".call")
        calls.end()
        return
    while True:
        yield from read_json_call(reader, calls)
        calls.end()
        yield from reader.space()
        yield from reader.maybe(";")
        if not (yield from reader.follows("{")):
            raise Malformed("no call follows")  # white space and a semicolon behind calls are text
        yield from reader.space()


LLAMA_3 = Notation(
    "Llama 3",
    (_TAG,),
    _read,
    CallSyntax(json_call('{"name": "', '", "parameters": ', "}"), apart="; "),
    opens_answer=True,
)

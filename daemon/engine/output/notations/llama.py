"""
Tool calls of Llama 3.1 to 3.3: the whole answer is `{"name": …, "parameters": {…}}`, without marks.

Some answers have several, with a semicolon or a line end between them. The mark `<|python_tag|>` may come first; it
also begins calls of built-in tools, such as `brave_search.call(query="…")`. Llama 4 writes such objects, or a list of
Python, as its template says, and may put `<|python_start|>` before them and `<|python_end|>` behind them.
"""

from __future__ import annotations

from dataclasses import replace

from daemon.engine.output.notations.notation import Notation, read_json_call
from daemon.engine.output.notations.pythonic import read_list, read_python_call
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Malformed, Reader, Steps
from daemon.engine.output.tool_calls import CallWriter

_TAG = "<|python_tag|>"
PYTHON_START, _PYTHON_END = "<|python_start|>", "<|python_end|>"


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.maybe(_TAG)
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        yield from read_python_call(reader, calls, ".call")
        calls.end()
        return
    yield from _read_objects(reader, calls)


def _read_objects(reader: Reader, calls: CallWriter, *end: str) -> Steps[None]:
    """Read calls up to a mark that ends them, which is not taken."""
    while True:
        yield from read_json_call(reader, calls)
        calls.end()
        if end and (yield from reader.follows(*end)):
            return
        yield from reader.space()
        yield from reader.maybe(";")
        if not (yield from reader.follows("{")):
            raise Malformed("no call follows")  # white space and a semicolon behind calls are text
        yield from reader.space()


def _read_marked(reader: Reader, calls: CallWriter) -> Steps[None]:
    if (yield from reader.maybe(PYTHON_START)):
        yield from reader.maybe(_PYTHON_END)  # the template has the text of the turn between both
    yield from reader.space()
    if (yield from reader.peek()) == "[":
        yield from read_list(reader, calls)
    else:
        yield from _read_objects(reader, calls, _PYTHON_END)
    if (yield from reader.follows(_PYTHON_END)):
        yield from reader.space()
        yield from reader.literal(_PYTHON_END)


def python_marked(notation: Notation) -> Notation:
    """Return the notation of Llama 4; without marks, its calls are those of another one."""
    return replace(notation, name="Llama 4", starts=(PYTHON_START,), read=_read_marked)


LLAMA_3 = Notation(
    "Llama 3",
    (_TAG,),
    _read,
    CallSyntax(json_call('{"name": "', '", "parameters": ', "}"), apart="; "),
    opens_answer=True,
)

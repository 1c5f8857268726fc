"""
Tool calls of Functionary.

Version 3.1 writes `<function=NAME>{…}</function>`. Version 3.2 writes messages, each to a recipient: `>>>NAME`, a line
end, and the arguments. Text is a message to `all`. The prompt ends with the first `>>>`.
"""

from __future__ import annotations

import re

from daemon.engine.output.notations.notation import Notation, read_arguments, read_end, read_name
from daemon.engine.output.notations.syntax import CallSyntax, json_call
from daemon.engine.output.reader import Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_TO = ">>>"
_TEXT = "all"


def _read_tag(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(_FUNCTION)
    calls.begin((yield from read_until(reader, ">")).strip())
    yield from read_arguments(reader, calls)
    yield from read_end(reader, _FUNCTION_END, before=(_FUNCTION,))
    calls.end()


def _read_message(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.maybe(_TO)
    recipient = yield from read_name(reader)
    if recipient == _TEXT:
        yield from reader.literal("\n")
        return  # the message itself is text
    calls.begin(recipient)
    yield from reader.literal("\n")
    yield from read_arguments(reader, calls)
    calls.end()


FUNCTIONARY_31 = Notation(
    "Functionary 3.1", (_FUNCTION,), _read_tag, CallSyntax(json_call("", ">", _FUNCTION_END), _FUNCTION, apart="")
)
FUNCTIONARY_32 = Notation(
    "Functionary 3.2",
    (_TO,),
    _read_message,
    CallSyntax(json_call("", "\n", ""), apart=_TO, opening=True),
    opens_answer=True,
    sure=re.compile(r">>>[^\n]+\n"),
    addressed=True,
    other_names=re.compile(rf"^{_TEXT}$"),
)

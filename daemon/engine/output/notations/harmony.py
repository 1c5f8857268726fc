"""Tool calls of gpt-oss: a message with the tool's name in its header, `to=functions.NAME … <|message|>{…}`."""

from __future__ import annotations

import re

from daemon.engine.output.notations.notation import Notation, read_arguments
from daemon.engine.output.notations.syntax import CallSyntax, Choice, Json, Part, Sequence, Text, arguments
from daemon.engine.output.reader import Malformed, Reader, Steps, read_until
from daemon.engine.output.tool_calls import CallWriter, Tool

CALLEE = "to=functions."
_MESSAGE = "<|message|>"
_NAME = re.compile(r"[^\s<]*")
_HEADER = re.compile(r"\s*(?:<\|channel\|>\s*\w+)?\s*(?:<\|constrain\|>)?\s*\w*\s*")


def _read(reader: Reader, calls: CallWriter) -> Steps[None]:
    yield from reader.literal(CALLEE)
    name: list[str] = []
    yield from reader.run(_NAME, name.append)
    calls.begin("".join(name))
    if not _HEADER.fullmatch((yield from read_until(reader, _MESSAGE))):
        raise Malformed("this is no header of a call")
    yield from read_arguments(reader, calls)
    calls.end()


_HEADERS = tuple(
    Text(f"{rest}{_MESSAGE}")
    for rest in (" <|constrain|>json", "<|channel|>commentary json", "<|channel|>commentary <|constrain|>json")
)
"""What follows the name. The template has it in the header's first part, and the channel behind it."""


def _call(tool: Tool) -> Part:
    return Sequence((Text(tool.name), Choice(_HEADERS), Json(arguments(tool))))


HARMONY = Notation(
    "gpt-oss",
    (CALLEE,),
    _read,
    CallSyntax(_call, f"<|channel|>commentary {CALLEE}", opening=True),
    other_names=re.compile(r"\s"),
)

"""
Tool calls that are JSON between two marks.

Hermes and Qwen write each call in tags of its own, `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Granite 3,
Phi 4, Nemotron, Hunyuan and MiniMax M1 write a list, or several objects, between their marks.
"""

from __future__ import annotations

import re
from dataclasses import replace

from daemon.engine.output.notations.notation import KEYS, JsonKeys, Notation, read_end, read_json_call, read_json_calls
from daemon.engine.output.notations.syntax import CallSyntax, Pattern, Sequence, Text, json_call
from daemon.engine.output.reader import Reader, Steps
from daemon.engine.output.tool_calls import CallWriter


def marked(
    name: str, start: str, end: str, syntax: CallSyntax, keys: JsonKeys = KEYS, *, several: bool = False
) -> Notation:
    """
    Return the notation of calls between two marks.

    Args:
        name: Name of the notation.
        start, end: The marks; an empty end mark if the calls end with the answer.
        syntax: The syntax that required calls keep to.
        keys: The keys of a call.
        several: Whether a block may have several objects, with white space between them.
    """

    def read(reader: Reader, calls: CallWriter) -> Steps[None]:
        yield from reader.literal(start)
        before = calls.count
        yield from read_json_calls(reader, calls, keys)
        listed = calls.count > before
        while several and not listed and (yield from reader.follows("{")):
            calls.end()
            yield from read_json_call(reader, calls, keys)
        if end:
            yield from read_end(reader, end, before=(start,))
        if not listed:
            calls.end()

    return Notation(name, (start,), read, syntax)


_OBJECT = json_call('{"name": "', '", "arguments": ', "}")


def _list(start: str, end: str) -> CallSyntax:
    """Return the syntax of a list of calls between two marks."""
    return CallSyntax(_OBJECT, f"{start}[", f"]{end}", between=", ")


HERMES = marked(
    "Hermes", "<tool_call>", "</tool_call>", CallSyntax(_OBJECT, "<tool_call>\n", "\n</tool_call>", apart="\n")
)
GRANITE = marked("Granite 3", "<|tool_call|>", "", _list("<|tool_call|>", ""))
PHI = marked("Phi 4", "<|tool_call|>", "<|/tool_call|>", _list("<|tool_call|>", "<|/tool_call|>"))
FUNCTOOLS = replace(marked("functools", "functools", "", _list("functools", "")), sure=re.compile(r"functools\s*\["))
GIGACHAT = marked("GigaChat 3.1", "<|function_call|>", "", CallSyntax(_OBJECT, "<|function_call|>", ""))
NEMOTRON = marked("Nemotron", "<TOOLCALL>", "</TOOLCALL>", _list("<TOOLCALL>", "</TOOLCALL>"))
TOOL_CALLS = marked(
    "tool_calls tags", "<tool_calls>", "</tool_calls>", _list("<tool_calls>", "</tool_calls>"), several=True
)
APRIEL = marked(
    "Apriel", "<tool_calls>", "</tool_calls>", _list("<tool_calls>", "</tool_calls>"), JsonKeys(id_last=True)
)
COMMAND_A = marked(
    "Command A",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    CallSyntax(
        lambda tool: Sequence(
            (
                Text('{"tool_call_id": "'),
                Pattern("[0-9]{1,4}"),
                json_call('", "tool_name": "', '", "parameters": ', "}")(tool),
            )
        ),
        "<|START_ACTION|>[\n    ",
        "\n]<|END_ACTION|>",
        between=",\n    ",
    ),
    JsonKeys(name=("tool_name",), arguments=("parameters",), id=("tool_call_id",)),
)
"""The calls of Command R7B, Command A and their successors."""

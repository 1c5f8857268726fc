"""The syntax of tool calls with JSON arguments, by notation. Pure."""

from __future__ import annotations

import json
from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallForm:
    """
    The text of a call between its marks: `begin`, the tool's name, `named`, the arguments as JSON, `end`.

    Attributes:
        begin: Text before the tool's name.
        named: Text between name and arguments.
        end: Text after the arguments.
        between: Text between two calls, each in marks of its own; None if an answer has one call only.
        opening: The header of a message that is a call. Without a header, blank lines may come before the first call.
    """

    begin: str
    named: str
    end: str
    between: str | None
    opening: str = ""

    def before(self, name: str) -> str:
        """Return the text before the arguments of a call."""
        return self.begin + json.dumps(name, ensure_ascii=False)[1:-1] + self.named


_JSON_IN_TAGS = CallForm('\n{"name": "', '", "arguments": ', "}\n", "\n")
_HEADERS = CallForm("", "[ARGS]", "", "")
_JSON_LIST = CallForm('[{"name": "', '", "arguments": ', "}]", None)
_MESSAGE = CallForm("", " <|constrain|>json<|message|>", "", None, "<|channel|>commentary ")
_SECTION = CallForm("<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>", "<|tool_call_end|>", None)


def call_form(parser: str, words: Container[str]) -> CallForm | None:
    """
    Return the syntax of calls of a notation; None if their arguments are no JSON.

    Args:
        parser: Name of the module that reads the calls. It identifies the notation.
        words: The model's vocabulary.
    """
    if parser.endswith(".mistral"):
        return _HEADERS if "[ARGS]" in words else _JSON_LIST
    forms = {"json_tools": _JSON_IN_TAGS, "kimi_k2": _SECTION, "harmony": _MESSAGE}
    return forms.get(parser.rpartition(".")[2])

"""The form of an answer that must be tool calls (`tool_choice` REQUIRED)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.call_grammar import CallGrammar, fields_of
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary
from daemon.shared.errors import SidecarError, invalid

_FIELD = "chat.tool_choice"


def required_calls(
    tools: Sequence[Tool], markup: ChatMarkup | None, vocabulary: Callable[[str], Vocabulary], only: str = ""
) -> GrammarMatcher:
    """
    Return the form of an answer that is one or several calls.

    Args:
        tools: The request's tools.
        markup: How the model writes calls; None if that is not known.
        vocabulary: Returns the model's tokens, given the field of the request that needs them.
        only: Name of the tool that must be called, once; any tools if empty.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form of this model's calls, or the schema of a tool, cannot be enforced.
    """
    notation = markup.calls if markup is not None else None
    if notation is None or notation.syntax is None:
        raise invalid(_FIELD, "cannot be REQUIRED: it is not known how this model writes calls; use AUTO")
    tokens = vocabulary(_FIELD)
    fields = fields_of(tools, only)
    for field, tool in fields.items():
        if not notation.can_hold(tool.name):
            raise invalid(f"{field}.name", "is a name that this model's notation of calls cannot hold; rename the tool")
    grammar = CallGrammar(notation.syntax, tokens)
    try:
        return GrammarMatcher("chat.tools", grammar.required(fields, once=bool(only)), tokens)
    except SidecarError:
        # If a single tool is to blame, the error names its field; else all together take too much work.
        for field, tool in fields.items():
            GrammarMatcher(f"{field}.parameters_json", grammar.required({field: tool}, once=bool(only)), tokens)
        raise

"""The form of an answer that must be tool calls (`tool_choice` REQUIRED), or calls or JSON (AUTO beside a form)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.tool_calls import Tool
from daemon.engine.structured_output.call_grammar import CallGrammar
from daemon.engine.structured_output.grammar import ResponseFormat, json_of_response, of_response
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary
from daemon.shared.errors import SidecarError, invalid

_FIELD = "chat.tool_choice"


def required_calls(
    tools: Mapping[str, Tool], markup: ChatMarkup | None, vocabulary: Callable[[str], Vocabulary], *, once: bool = False
) -> GrammarMatcher:
    """
    Return the form of an answer that is one or several calls.

    Args:
        tools: The tools that may be called, by the field of the request that has each.
        markup: How the model writes calls; None if that is not known.
        vocabulary: Returns the model's tokens, given the field of the request that needs them.
        once: Whether there is exactly one call.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form of this model's calls, or the schema of a tool, cannot be enforced.
    """
    notation = markup.calls if markup is not None else None
    if notation is None or notation.syntax is None:
        raise invalid(_FIELD, "cannot be REQUIRED: it is not known how this model writes calls; use AUTO")
    tokens = vocabulary(_FIELD)
    for field, tool in tools.items():
        if not notation.can_hold(tool.name):
            raise invalid(f"{field}.name", "is a name that this model's notation of calls cannot hold; rename the tool")
    grammar = CallGrammar(notation.syntax, tokens)
    try:
        return GrammarMatcher("chat.tools", grammar.required(tools, once=once), tokens)
    except SidecarError:
        # If a single tool is to blame, the error names its field; else all together take too much work.
        for field, tool in tools.items():
            GrammarMatcher(f"{field}.parameters_json", grammar.required({field: tool}, once=once), tokens)
        raise


def calls_or_form(
    tools: Mapping[str, Tool],
    markup: ChatMarkup | None,
    vocabulary: Callable[[str], Vocabulary],
    wanted: ResponseFormat,
    header: tuple[int, ...],
) -> GrammarMatcher:
    """
    Return the form of an answer that is calls, or JSON of a response format.

    Args:
        tools, markup, vocabulary: As for `required_calls`.
        wanted: The response format, of JSON.
        header: Ids that the model writes before a text, but not before calls.

    Raises:
        SidecarError: As `required_calls`, or if the response format cannot be enforced.
    """
    notation = markup.calls if markup is not None else None
    if notation is None or notation.syntax is None:
        text = "cannot go with response_format: it is not known how this model writes calls; leave one of them out"
        raise invalid("chat.tools", text)
    tokens = vocabulary("response_format")
    GrammarMatcher(wanted.field, of_response(wanted), tokens)  # each alone, so that errors name the one to blame
    required_calls(tools, markup, vocabulary)
    form = " ".join([*(f"<[{token}]>" for token in header), json_of_response(wanted)])
    return GrammarMatcher(
        "chat.tools", CallGrammar(notation.syntax, tokens).required(tools, once=False, instead=form), tokens
    )

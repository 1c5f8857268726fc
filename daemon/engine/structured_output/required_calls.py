"""The grammar of an answer that must be tool calls (`tool_choice` REQUIRED)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from daemon.engine.output.call_form import CallForm
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.tool_calls import Tool, read
from daemon.engine.structured_output.grammar import json_part, text_part
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary, special_in
from daemon.shared.errors import SidecarError, invalid

_FIELD = "chat.tool_choice"
_LEAD = r"/\n{1,2}/? "
"""Line ends that models write between their reasoning and a call, as a regular expression of a rule."""

_NO_PARAMETERS: dict[str, Any] = {"additionalProperties": False}
"""The schema of a tool without parameters: its arguments are an empty object."""


def required_calls(
    tools: Sequence[Tool], notation: ChatMarkup | None, vocabulary: Callable[[str], Vocabulary], only: str = ""
) -> GrammarMatcher:
    """
    Return the form of an answer that is one or several calls.

    Args:
        tools: The request's tools.
        notation: How the model writes calls; None if that is not known.
        vocabulary: Returns the model's tokens, given the field of the request that needs them.
        only: Name of the tool that must be called, once; any tools if empty.

    Raises:
        SidecarError: INVALID_ARGUMENT if the form of this model's calls, or the schema of a tool, cannot be enforced.
    """
    form = notation.call_form if notation is not None else None
    if notation is None or form is None:
        raise invalid(
            _FIELD, "cannot be REQUIRED: this model is not known to write calls with JSON arguments; use AUTO"
        )
    tokens = vocabulary(_FIELD)
    calls = {
        f"chat.tools[{index}]": _call(f"chat.tools[{index}]", tool, notation, form, tokens)
        for index, tool in enumerate(tools)
        if only in ("", tool.name)
    }
    lead = "" if form.opening else _LEAD
    between = None if only else form.between
    try:
        return GrammarMatcher("chat.tools", _grammar(lead, calls.values(), between), tokens)
    except SidecarError:
        # If a single tool is to blame, the error names its field; else all together take too much work.
        for field, call in calls.items():
            GrammarMatcher(f"{field}.parameters_json", _grammar(lead, [call], between), tokens)
        raise


def _grammar(lead: str, calls: Collection[str], between: str | None) -> str:
    """
    Return the grammar of an answer that is calls.

    Args:
        lead: The part of a rule that comes before the first call.
        calls: A rule for each tool.
        between: Text between two calls; None if the answer is one call.
    """
    more = "" if between is None else f" ({text_part(between, {})} call)*"
    rules = [f"start: {lead}call{more}", f"call: {' | '.join(f'call_{index}' for index in range(len(calls)))}"]
    return "\n".join(rules + [f"call_{index}: {call}" for index, call in enumerate(calls)])


def _call(field: str, tool: Tool, notation: ChatMarkup, form: CallForm, tokens: Vocabulary) -> str:
    """
    Return the rule of a call of a tool.

    Raises:
        SidecarError: INVALID_ARGUMENT for a part of `field` if the notation cannot write such calls.
    """
    before = form.before(tool.name)
    # The parser has to read the name back from what the grammar makes the model write.
    sample = read(before + "{}" + form.end, notation.parse, [tool]) if notation.parse else None
    if not sample or "{}" not in (call.arguments_json for call in sample):
        raise invalid(f"{field}.name", "is a name that this model's notation of calls cannot hold; rename the tool")
    schema = tool.parameters or _NO_PARAMETERS
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise invalid(
            f"{field}.parameters_json", "must allow an object, because the arguments of a call are a JSON object"
        )
    head, tail = form.opening + notation.call_start + before, form.end + notation.call_end
    special = special_in(head + tail, tokens)
    arguments = json_part(f"{field}.parameters_json", {**schema, "type": "object"})
    return f"{text_part(head, special)} {arguments} {text_part(tail, special)}"

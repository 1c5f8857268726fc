"""Required calls: the form of an answer that must be calls of the request's tools."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.tool_calls import read
from daemon.engine.prompt.prompts import offered
from daemon.engine.prompt.tokenizers import Tokenizer
from daemon.engine.structured_output.call_form import CallForm
from daemon.engine.structured_output.grammar import json_part, text_part
from daemon.engine.structured_output.matcher import GrammarMatcher, Vocabulary, special_in
from daemon.shared.errors import SidecarError, invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

_FIELD = "chat.tool_choice"
_LEAD = r"/\n{1,2}/? "
"""What models write between their reasoning and a call."""

_NO_PARAMETERS = {"additionalProperties": False}


def required_calls(chat: pb.Chat, notation: ChatMarkup | None, tokenizer: Tokenizer) -> GrammarMatcher:
    """
    Return the form of calls of any tools of a conversation, or of one call of its required tool.

    Raises:
        SidecarError: INVALID_ARGUMENT if calls of this model, or the schema of a tool, cannot be kept to.
    """
    form = notation.call_form if notation is not None else None
    if notation is None or form is None:
        raise invalid(_FIELD, "cannot be REQUIRED: how this model writes calls is not known as JSON")
    tokens = tokenizer.vocabulary(_FIELD)
    calls = {
        f"chat.tools[{index}]": _call(f"chat.tools[{index}]", tool, notation, form, tokens)
        for index, tool in enumerate(offered(chat))
        if chat.required_tool in ("", tool["function"]["name"])
    }
    lead = "" if form.opening else _LEAD
    between = None if chat.required_tool else form.between
    try:
        return GrammarMatcher("chat.tools", _grammar(lead, calls.values(), between), tokens)
    except SidecarError:
        for field, call in calls.items():  # one may be to blame, or all together
            GrammarMatcher(f"{field}.parameters_json", _grammar(lead, [call], between), tokens)
        raise


def _grammar(lead: str, calls: Collection[str], between: str | None) -> str:
    """Return the grammar of one of some calls; of several if something may stand between them."""
    more = "" if between is None else f" ({text_part(between, {})} call)*"
    rules = [f"start: {lead}call{more}", f"call: {' | '.join(f'call_{index}' for index in range(len(calls)))}"]
    return "\n".join(rules + [f"call_{index}: {call}" for index, call in enumerate(calls)])


def _call(field: str, tool: dict[str, Any], notation: ChatMarkup, form: CallForm, tokens: Vocabulary) -> str:
    """Return the rule of a call of a tool."""
    function = tool["function"]
    before = form.before(function["name"])
    sample = read(before + "{}" + form.end, notation.parse, [tool]) if notation.parse else None
    if not sample or "{}" not in (call.arguments_json for call in sample):
        raise invalid(f"{field}.name", "is a name that calls of this model cannot hold")
    schema = function["parameters"] or _NO_PARAMETERS
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise invalid(f"{field}.parameters_json", "must allow an object, as arguments are one")
    head, tail = form.opening + notation.call_start + before, form.end + notation.call_end
    special = special_in(head + tail, tokens)
    arguments = json_part(f"{field}.parameters_json", {**schema, "type": "object"})
    return f"{text_part(head, special)} {arguments} {text_part(tail, special)}"

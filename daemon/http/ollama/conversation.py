"""
Conversations of Ollama's API as the daemon takes them. Pure.

A call need not have a name in this API, and a result tells the tool rather than the call. Chat templates match them by
the call's id, so each call without one gets one, and each result that names no call answers the first open call of its
tool. The ids depend on the position alone, so that the next turn of a conversation has the same prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.http.errors import Problem
from daemon.http.in_words import left_out
from daemon.http.ollama.chat_types import Call, Message
from mlx_sidecar import Message as Turn
from mlx_sidecar import ToolCall as Called


def turns(messages: Sequence[Message]) -> list[Turn]:
    """
    Return the turns of a conversation.

    Raises:
        Problem: If a turn has images that are no result of a tool.
    """
    made: list[Called] = []
    open_calls: list[Called] = []
    found: list[Turn] = []
    for index, message in enumerate(messages):
        calls = [_called(len(made) + number, call) for number, call in enumerate(message.tool_calls or ())]
        made += calls
        if calls:
            open_calls = list(calls)
        found.append(
            Turn(
                role=message.role,
                content=_content(message, f"messages[{index}]"),
                reasoning_content=message.thinking or "",
                tool_calls=calls,
                tool_call_id=_answered(message, open_calls) if message.role == "tool" else message.tool_call_id or "",
            )
        )
    return found


def _content(message: Message, place: str) -> str:
    """Return the text of a turn, with a line for each image that a tool brought."""
    if message.images and message.role != "tool":
        text = f"{place}.images is not supported: models read text alone"
        raise Problem(400, text, code="unsupported_parameter", field=f"{place}.images")
    return "\n".join(
        [*([message.content] if message.content else []), *[left_out("image") for _ in message.images or ()]]
    )


def _called(number: int, call: Call) -> Called:
    # Nine letters and digits: the template of Mistral's models takes no other id.
    return Called(call.id or f"call{number:05d}", call.function.name, call.function.arguments or {})


def _answered(message: Message, open_calls: list[Called]) -> str:
    """Return the id of the call that a result answers, which is open no more; empty if there is none."""
    if message.tool_call_id:
        matching = [call for call in open_calls if call.id == message.tool_call_id]
    else:
        matching = [call for call in open_calls if message.tool_name in (None, "", call.name)] or open_calls
    if not matching:
        return message.tool_call_id or ""
    open_calls.remove(matching[0])
    return matching[0].id

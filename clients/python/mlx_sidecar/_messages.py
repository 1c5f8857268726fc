"""Types of a chat prompt: messages, tools and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class ToolCall:
    """
    A call that the model made.

    Attributes:
        id: Name of this call, unique within the conversation.
        name: Name of the tool.
        arguments: Its arguments, as a mapping or as the JSON text of one.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] | str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """
    One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant", "tool", or another role that the model's template knows.
        content: Text of the turn.
        reasoning_content: Reasoning that came before the content of an assistant turn.
        tool_calls: Calls that an assistant turn made; each can also be a mapping with the same keys.
        tool_call_id: The call that a "tool" turn answers.
    """

    role: str
    content: str = ""
    reasoning_content: str = ""
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """
    A function that the model may call.

    Attributes:
        name: Name of the tool.
        description: What it does, for the model to read.
        parameters: JSON schema of its parameters, as a mapping or as text; empty means none.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | str = ""


Prompt: TypeAlias = str | Sequence[int] | Sequence[Message | Mapping[str, Any]]
"""Text, token ids, or the turns of a conversation. A turn can also be a mapping with the keys of `Message`."""

"""Builds the parts of requests that are prompts: texts, token ids, and conversations with tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message as Proto

from mlx_sidecar._exceptions import InvalidArgument
from mlx_sidecar._messages import Message, Prompt, Tool, ToolCall
from mlx_sidecar.v1 import sidecar_pb2 as pb

ProtoT = TypeVar("ProtoT", bound=Proto)
DataT = TypeVar("DataT")


def prompt_fields(prompt: Prompt, chat: dict[str, Any]) -> dict[str, Any]:
    """Return the field of a request that has its prompt; `chat` are the options of a conversation."""
    if not isinstance(prompt, str | bytes) and len(prompt) and isinstance(prompt[0], Message | Mapping):
        return {"chat": build(pb.Chat, "chat.", messages=[_message(turn) for turn in prompt], **chat)}
    for name, value in chat.items():
        if value not in (None, [], ""):
            raise InvalidArgument(f"chat.{name}: only for prompts that are messages", field=f"chat.{name}")
    return text_or_tokens(prompt, "")


def text_or_tokens(prompt: Any, path: str) -> dict[str, Any]:
    """Return the field of a message that has a text or token ids; `path` is that of the message."""
    if isinstance(prompt, str):
        return {"text": prompt}
    # Bytes are a sequence of ints too, and would silently become token ids.
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise TypeError("a prompt is text, token ids or messages, not bytes")
    return {"tokens": build(pb.TokenIds, f"{path}tokens.", ids=prompt)}


def _message(turn: Any) -> pb.ChatMessage:
    turn = _data(Message, turn)
    return build(
        pb.ChatMessage,
        "chat.messages.",
        role=turn.role,
        content=turn.content,
        reasoning_content=turn.reasoning_content,
        tool_calls=[_tool_call(call) for call in turn.tool_calls],
        tool_call_id=turn.tool_call_id,
    )


def _tool_call(call: Any) -> pb.ToolCall:
    call = _data(ToolCall, call)
    arguments = as_json(call.arguments)
    return build(pb.ToolCall, "chat.messages.tool_calls.", id=call.id, name=call.name, arguments_json=arguments)


def tool_message(tool: Any) -> pb.Tool:
    """Return a tool, given as a Tool or a mapping."""
    tool = _data(Tool, tool)
    schema = as_json(tool.parameters)
    return build(pb.Tool, "chat.tools.", name=tool.name, description=tool.description, parameters_json=schema)


def _data(kind: type[DataT], value: Any) -> DataT:
    return value if isinstance(value, kind) else kind(**value)


def value_as_json(value: Any) -> str:
    """Return any value as JSON; a text is a value as well."""
    return json.dumps(value, ensure_ascii=False)


def as_json(value: Mapping[str, Any] | str) -> str:
    """Return a JSON document; a text is one already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def build(kind: type[ProtoT], path: str = "", /, **fields: Any) -> ProtoT:
    """
    Return a message with some fields.

    Raises:
        InvalidArgument: At `path` and the name of a field, for a value out of the range of its type.
    """
    # One field at a time, because protobuf does not name the field that it refuses.
    message = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except ValueError as error:
            raise InvalidArgument(f"{path}{name}: {error}", field=path + name) from None
    return message

"""Builds the parts of requests that are prompts: texts, token ids, and conversations with tools."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from google.protobuf.message import Message as Proto

from mlx_sidecar._exceptions import InvalidArgument
from mlx_sidecar._messages import Message, Prompt, Tool, ToolCall
from mlx_sidecar.v1 import sidecar_pb2 as pb

ProtoT = TypeVar("ProtoT", bound=Proto)
DataT = TypeVar("DataT")


def prompt_fields(prompt: Prompt, chat: dict[str, Any]) -> dict[str, Any]:
    """Return the field of a request that has its prompt; `chat` are the options of a conversation."""
    _check_kind(prompt)
    if not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Message | Mapping):
        return {"chat": build(pb.Chat, "chat.", messages=_messages(prompt), **chat)}
    for name, value in chat.items():
        if value not in (None, [], ""):
            raise InvalidArgument(f"chat.{name}: only for prompts that are messages", field=f"chat.{name}")
    return text_or_tokens(prompt, "")


def text_or_tokens(prompt: Any, path: str) -> dict[str, Any]:
    """Return the field of a message that has a text or token ids; `path` is that of the message."""
    if isinstance(prompt, str):
        return {"text": prompt}
    _check_kind(prompt)
    return {"tokens": build(pb.TokenIds, f"{path}tokens.", ids=prompt)}


def _check_kind(prompt: Any) -> None:
    """Refuse what is no list, such as a single message. Bytes are a sequence of ints, and would become token ids."""
    is_list = hasattr(prompt, "__len__") and hasattr(prompt, "__getitem__") and not isinstance(prompt, Mapping)
    if not is_list or isinstance(prompt, bytes | bytearray | memoryview):
        raise TypeError(f"a prompt is text, token ids or a list of messages, not {type(prompt).__name__}")


def _messages(turns: Any) -> list[pb.ChatMessage]:
    return [_message(turn, f"chat.messages[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, path: str) -> pb.ChatMessage:
    turn = _data(Message, turn, path)
    calls = [
        _tool_call(call, f"{path}.tool_calls[{index}]")
        for index, call in enumerate(each(turn.tool_calls, f"{path}.tool_calls"))
    ]
    return build(
        pb.ChatMessage,
        f"{path}.",
        role=turn.role,
        content=turn.content,
        reasoning_content=turn.reasoning_content,
        tool_calls=calls,
        tool_call_id=turn.tool_call_id,
    )


def _tool_call(call: Any, path: str) -> pb.ToolCall:
    call = _data(ToolCall, call, path)
    arguments = as_json(call.arguments)
    return build(pb.ToolCall, f"{path}.", id=call.id, name=call.name, arguments_json=arguments)


def tool_messages(tools: Any) -> list[pb.Tool]:
    """Return tools, each given as a Tool or a mapping."""
    return [_tool(tool, f"chat.tools[{index}]") for index, tool in enumerate(each(tools, "chat.tools"))]


def each(values: Any, path: str) -> list[Any]:
    """
    Return the parts of a list that may be None, which means that there are none.

    Raises:
        TypeError: With `path`, for another type. A text or a mapping is no list of its letters or keys.
    """
    if values is None:
        return []
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{path} cannot have a value of type {type(values).__name__}")
    return list(values)


def _tool(tool: Any, path: str) -> pb.Tool:
    tool = _data(Tool, tool, path)
    schema = as_json(tool.parameters)
    return build(pb.Tool, f"{path}.", name=tool.name, description=tool.description, parameters_json=schema)


def _data(kind: type[DataT], value: Any, path: str) -> DataT:
    """
    Return a part of a conversation, given as such or as a mapping with the same keys.

    Raises:
        TypeError: With `path`, for another type, an unknown key, or a key that is missing.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{path} is of type {type(value).__name__}, but must be a {kind.__name__} or a mapping")
    known = fields(kind)  # type: ignore[arg-type]  # each kind is a dataclass
    names = [field.name for field in known]
    if unknown := [key for key in value if key not in names]:
        raise TypeError(f"{path} has the key {unknown[0]!r}; its keys are {', '.join(names)}")
    if missing := [field.name for field in known if field.default is MISSING and field.name not in value]:
        raise TypeError(f"{path}.{missing[0]} is missing")
    return kind(**value)


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
        TypeError: With the same, for a value of another type.
    """
    # One field at a time, because protobuf does not name the field that it refuses.
    message = kind()
    for name, value in fields.items():
        try:
            message.MergeFrom(kind(**{name: value}))
        except ValueError as error:
            raise InvalidArgument(f"{path}{name}: {error}", field=path + name) from None
        except TypeError:  # its own text names neither the field nor the value
            raise TypeError(f"{path}{name} cannot have a value of type {type(value).__name__}") from None
    return message

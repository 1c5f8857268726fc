"""Anthropic's messages: the types of answers and of the events of their streams."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel


class TextContent(BaseModel):
    """A text of an answer."""

    type: Literal["text"] = "text"
    text: str = ""


class ThinkingContent(BaseModel):
    """What the model thought before it answered."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class ToolUseContent(BaseModel):
    """A call of a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


Content: TypeAlias = TextContent | ThinkingContent | ToolUseContent
"""A block of an answer."""
StopReason: TypeAlias = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
"""Why an answer ended."""


class CacheCreation(BaseModel):
    """Tokens that were computed and are kept, by how long."""

    ephemeral_5m_input_tokens: int
    ephemeral_1h_input_tokens: int


class OutputDetails(BaseModel):
    """What the tokens of an answer were."""

    thinking_tokens: int


class Usage(BaseModel):
    """Tokens counted. Those of the prompt are the sum of `input_tokens`, of those read and of those kept."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    cache_creation: CacheCreation
    output_tokens: int
    output_tokens_details: OutputDetails


class Message(BaseModel):
    """An answer; at the beginning of a stream without its content."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Content]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: Usage


class MessageStart(BaseModel):
    """The first event of a stream."""

    type: Literal["message_start"] = "message_start"
    message: Message


class BlockStart(BaseModel):
    """A block begins."""

    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: Content


class TextDelta(BaseModel):
    """A piece of a text."""

    type: Literal["text_delta"] = "text_delta"
    text: str


class ThinkingDelta(BaseModel):
    """A piece of a thinking."""

    type: Literal["thinking_delta"] = "thinking_delta"
    thinking: str


class SignatureDelta(BaseModel):
    """The signature of a thinking."""

    type: Literal["signature_delta"] = "signature_delta"
    signature: str


class InputDelta(BaseModel):
    """A piece of a call's arguments."""

    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str


Piece: TypeAlias = TextDelta | ThinkingDelta | SignatureDelta | InputDelta
"""A piece of a block."""


class BlockDelta(BaseModel):
    """A piece of the block that has begun."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: Piece


class BlockStop(BaseModel):
    """A block is whole."""

    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class Ending(BaseModel):
    """How an answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(BaseModel):
    """The answer ended."""

    type: Literal["message_delta"] = "message_delta"
    delta: Ending
    usage: Usage


class MessageStop(BaseModel):
    """The last event of a stream."""

    type: Literal["message_stop"] = "message_stop"


StreamEvent: TypeAlias = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
"""An event of a stream."""

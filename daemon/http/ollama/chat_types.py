"""Ollama's chat: the types of requests and of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from daemon.http.ollama.shared_types import CONTEXT_IS_KEPT, Generation, Piece
from daemon.http.parameters import Items, Parameters, Refusal

IMAGES = Refusal("models read text alone", ([],))
"""Why images are refused."""


class CalledFunction(Parameters):
    """The function of a call."""

    name: str = Field(description="name of the tool")
    arguments: dict[str, Any] | None = Field(None, description="arguments, an object")

    harmless: ClassVar[Mapping[str, str]] = {"index": "the order of the list holds"}


class Call(Parameters):
    """A call that an assistant turn made."""

    id: str | None = Field(None, description="name of the call; one is made if it is missing")
    function: CalledFunction = Field(description="what was called")

    harmless: ClassVar[Mapping[str, str]] = {"type": "all calls are of functions"}


class Message(Parameters):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(description="which turn it is")
    content: str | None = Field(None, description="its text")
    thinking: str | None = Field(None, description="reasoning before an assistant turn's content")
    tool_calls: Items[Call] | None = Field(None, description="calls that an assistant turn made")
    tool_name: str | None = Field(
        None, description="the tool that a `tool` turn has the result of; it answers the first open call of that tool"
    )
    tool_call_id: str | None = Field(None, description="the call that a `tool` turn answers")
    images: Items[Any] | None = Field(
        None, description="of a `tool` turn: the model is told that they were there; refused in others, unless empty"
    )


class Function(Parameters):
    """A function that the model may call."""

    name: str = Field(description="name of the tool")
    description: str | None = Field(None, description="what it does, for the model to read")
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of its arguments")

    harmless: ClassVar[Mapping[str, str]] = {"strict": "calls follow their tool's schema in any case"}


class Tool(Parameters):
    """A tool."""

    type: Literal["function"] = Field("function", description="`function`")
    function: Function = Field(description="what can be called")


class ChatRequest(Generation):
    """The body of `POST /api/chat`."""

    messages: Items[Message] | None = Field(
        None,
        description="the conversation; an assistant's text at its end is continued; without messages the model is "
        "loaded, or unloaded with `keep_alive` 0",
    )
    tools: Items[Tool] | None = Field(None, description="functions that the model may call")

    refused: ClassVar[Mapping[str, Refusal]] = CONTEXT_IS_KEPT


class AnsweredFunction(BaseModel):
    """A function that is called."""

    index: int
    name: str
    arguments: dict[str, Any]


class AnsweredCall(BaseModel):
    """A tool call."""

    id: str
    function: AnsweredFunction


class AnsweredMessage(BaseModel):
    """The answer, or a piece of it."""

    role: Literal["assistant"]
    content: str
    thinking: str
    tool_calls: list[AnsweredCall]


class ChatPiece(Piece):
    """A piece of an answer of `POST /api/chat`, or a whole one."""

    message: AnsweredMessage

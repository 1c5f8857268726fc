"""The shape of errors that OpenAI's SDKs parse."""

from __future__ import annotations

from pydantic import BaseModel

from daemon.http.errors import Problem
from daemon.http.streaming import Framing, comment, event

_TYPES = {403: "permission_error", 429: "rate_limit_error"}
"""Types by status. As OpenAI's own, unknown tokens, models and paths have that of all other wrong requests."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of an error."""

    error: ErrorDetail


def shape(problem: Problem) -> tuple[int, bytes]:
    """Return status and body of an error."""
    return problem.status, _body(problem).model_dump_json().encode()


def _body(problem: Problem) -> ErrorBody:
    return ErrorBody(error=detail(problem))


def detail(problem: Problem) -> ErrorDetail:
    """Return what went wrong, as bodies and events have it."""
    kind = _TYPES.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    return ErrorDetail(message=problem.message, type=kind, param=problem.field, code=problem.code)


def _piece(problem: Problem) -> bytes:
    return event(_body(problem).model_dump_json())


NAMES = {
    "chat.messages": "messages",
    "chat.tools": "tools",
    "stop.strings": "stop",
    "cache.salt": "cache_salt",
    "chat.required_tool": "tool_choice.function.name",
    "response_format.json_schema": "response_format.json_schema.schema",
    "chat.template_args": "chat_template_kwargs",
    "chat.enable_thinking": "chat_template_kwargs.enable_thinking",
    "cache.keep": "prompt_cache_retention",
    "samples": "n",
    "prompt_logprobs": "logprobs",
    "texts": "input",
    "text": "prompt",
    "tokens.ids": "prompt",
    "chat": "messages",
    "chat.messages[].tool_calls[].name": "messages[].tool_calls[].function.name",
    "chat.messages[].tool_calls[].arguments_json": "messages[].tool_calls[].function.arguments",
    "chat.tools[].name": "tools[].function.name",
    "chat.tools[].parameters_json": "tools[].function.parameters",
    "REQUIRED": "required",
    "AUTO": "auto",
    "LAST_TOKEN": "last_token",
    "MEAN": "mean",
    "CLS": "cls",
}
"""The parameter for each field of the gRPC API that has another name here, and values of that kind."""

EVENTS = Framing(media_type="text/event-stream", alive=comment("keep-alive"), error=_piece, names=NAMES)
"""OpenAI's server-sent events. Comments keep a connection alive; SDKs skip them, and raise what has `error`."""

DONE = event("[DONE]")
"""The end of a stream."""

"""The shape of errors that Anthropic's SDKs parse, and the frame of their streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import BaseModel

from daemon.http.errors import Problem, problem
from daemon.http.generation import prompt_and_context
from daemon.http.streaming import Framing, event
from mlx_sidecar import ContextLengthExceeded, SidecarError

OVERLOADED = 529
"""Status of a server that has too much to do."""
_BUSY = ("queue_full", "budget_in_use", "too_many_bodies")
"""Codes of problems that mean it."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}

NAMES = {
    "chat.messages": "messages",
    "chat": "messages",
    "chat.continue_final_message": "messages",
    "chat.tools": "tools",
    "chat.tools[].parameters_json": "tools[].input_schema",
    "chat.required_tool": "tool_choice.name",
    "chat.tool_choice": "tool_choice",
    "chat.enable_thinking": "thinking.type",
    "chat.reasoning_effort": "output_config.effort",
    "reasoning_budget": "thinking.budget_tokens",
    "stop.strings": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format.schema",
    "cache.keep": "cache_control.ttl",
    "REQUIRED": "any",
    "AUTO": "auto",
}
"""The parameter for each field of the gRPC API that has another name here, and values of that kind."""


class Details(BaseModel):
    """What a client can do about an error without a person."""

    error_code: Literal["thread_unsupported_request"]
    unsupported: list[str]


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str
    details: Details | None = None


class ErrorBody(BaseModel):
    """The body of an error."""

    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str | None


class Failed(Problem):
    """
    A request that failed in the daemon.

    Args:
        found: The problem.
        request_id: Name of the request in the daemon's log.
        message: Text of the problem, if it is another one.
    """

    def __init__(self, found: Problem, request_id: str, message: str | None = None) -> None:
        text = found.message if message is None else message
        super().__init__(
            found.status,
            text,
            code=found.code,
            field=found.field,
            retry_after=found.retry_after,
            request_id=request_id,
        )


@contextmanager
def told(request_id: str) -> Iterator[None]:
    """
    Turn errors of the daemon into problems with the request's id and its own names.

    Args:
        request_id: Name of the request.

    Raises:
        Failed: Instead of SidecarError.
    """
    try:
        yield
    except SidecarError as error:
        found = problem(error, NAMES)
        assert found is not None
        raise Failed(found, request_id, _too_long(error)) from error


def _too_long(error: SidecarError) -> str | None:
    """Return the text by which clients know that a conversation has to be shortened; None for other errors."""
    sizes = prompt_and_context(error) if isinstance(error, ContextLengthExceeded) else None
    if sizes is None or sizes[0] < sizes[1]:
        return None
    return f"prompt is too long: {sizes[0]} tokens > {sizes[1]} maximum"


def shape(problem: Problem) -> tuple[int, bytes]:
    """Return status and body of an error."""
    status = OVERLOADED if problem.code in _BUSY else problem.status
    return status, _body(problem, status).model_dump_json(exclude_unset=True).encode()


def _body(problem: Problem, status: int) -> ErrorBody:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = ErrorDetail(type=kind, message=problem.message)
    if problem.field == "thread":
        # By these words the loops for tools of Anthropic's SDKs, which begin with a thread, go on without one.
        error.details = Details(error_code="thread_unsupported_request", unsupported=["thread"])
    return ErrorBody(type="error", error=error, request_id=problem.request_id)


def _piece(problem: Problem) -> bytes:
    return event(shape(problem)[1], "error")


EVENTS = Framing(media_type="text/event-stream", alive=event('{"type":"ping"}', "ping"), error=_piece)
"""Anthropic's server-sent events. Pings keep a connection alive; SDKs skip them, and raise what is called `error`."""

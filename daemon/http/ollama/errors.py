"""The shape of Ollama's errors, and the form of its streams: a JSON object on each line."""

from __future__ import annotations

from pydantic import BaseModel

from daemon.http.errors import Problem
from daemon.http.streaming import Framing, one_line


class ErrorBody(BaseModel):
    """The body of an error."""

    error: str


def shape(problem: Problem) -> tuple[int, bytes]:
    """Return status and body of an error."""
    return problem.status, _body(problem)


def _body(problem: Problem) -> bytes:
    return ErrorBody(error=problem.message).model_dump_json().encode()


def line(piece: BaseModel) -> bytes:
    """Return a piece of a stream."""
    return one_line(piece.model_dump_json(exclude_unset=True).encode()) + b"\n"


NAMES = {
    "chat": "messages",
    "chat.messages": "messages",
    "chat.continue_final_message": "messages",
    "chat.tools": "tools",
    "chat.messages[].tool_calls[].name": "messages[].tool_calls[].function.name",
    "chat.tools[].name": "tools[].function.name",
    "chat.tools[].parameters_json": "tools[].function.parameters",
    "chat.enable_thinking": "think",
    "chat.reasoning_effort": "think",
    "text": "prompt",
    "texts": "input",
    "response_format": "format",
    "response_format.json_schema": "format",
    "ttl": "keep_alive",
    "max_tokens": "options.num_predict",
    "stop.strings": "options.stop",
    "sampling.repetition_penalty": "options.repeat_penalty",
    **{
        f"sampling.{name}": f"options.{name}"
        for name in ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty")
    },
    "LAST_TOKEN": "last_token",
    "MEAN": "mean",
    "CLS": "cls",
}
"""The parameter for each field of the gRPC API that has another name here, and values of that kind."""


def framing(alive: BaseModel | None) -> Framing:
    """
    Return the form of a stream.

    Clients parse each line, an empty one too. So the sign of life is a piece of the answer that has nothing in it.
    """
    sign = line(alive) if alive is not None else None
    return Framing("application/x-ndjson", sign, lambda one: line(ErrorBody(error=one.message)), NAMES)

"""OpenAI's responses: the daemon's events become an answer, and the events of a stream, in their whole order. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from daemon.http.errors import Problem
from daemon.http.generation import Ask
from daemon.http.openai.errors import detail
from daemon.http.responses.answer_types import (
    Event,
    Failure,
    Incomplete,
    InputDetails,
    OutputDetails,
    ReasoningSettings,
    Response,
    Usage,
)
from daemon.http.responses.offered import offered
from daemon.http.responses.output import Made, Output
from daemon.http.responses.request_types import OtherTool, ResponseRequest, ToolChoice
from mlx_sidecar import Delta, Finished, GenerateEvent, Started
from mlx_sidecar import Usage as Counted

ENCRYPTED = "reasoning.encrypted_content"


class Answer:
    """
    An answer that is being made.

    Args:
        request: What was asked.
        asked: What the daemon was asked.
        now: Seconds since 1970; None for the time of each event.

    Attributes:
        response: The answer so far.
    """

    def __init__(self, request: ResponseRequest, asked: Ask, now: float | None = None) -> None:
        self._now = now
        self._count = 0
        reasoning = request.reasoning
        self._output = Output(
            asked.request_id,
            tools=offered(request.tools),
            summary=reasoning is not None and reasoning.summary is not None,
            give_back=ENCRYPTED in (request.include or ()),
        )
        self.response = _begun(request, asked, self._time())

    def add(self, event: GenerateEvent) -> Iterator[Event]:
        """Take an event and yield what a client gets of it."""
        match event:
            case Started():
                self.response.model = event.model
                yield from self._announced()
            case Delta():
                yield from self._numbered(self._output.add(event))
            case Finished():
                yield from self._finished(event)

    def failed(self, problem: Problem) -> Iterator[Event]:
        """Yield the end of an answer that failed; its beginning as well, if that was not sent. SDKs raise the error."""
        if not self._count:
            yield from self._announced()
        error = detail(problem)
        # OpenAI's reference has the fields in the event itself; its server, and what its SDKs raise, in `error`.
        yield self._event("error", {"code": error.code, "message": error.message, "param": error.param, "error": error})
        self.response.status = "failed"
        self.response.error = Failure(code=problem.code, message=problem.message)
        yield self._event("response.failed", {"response": self.response})

    def kept(self) -> Response:
        """Return the answer as it is kept: without calls that turned out to be none."""
        return self.response.model_copy(update={"output": self._output.lasting()})

    def _announced(self) -> Iterator[Event]:
        yield self._event("response.created", {"response": self.response})
        yield self._event("response.in_progress", {"response": self.response})

    def _finished(self, end: Finished) -> Iterator[Event]:
        whole = end.reason != "length"
        yield from self._numbered(self._output.end("completed" if whole else "incomplete"))
        response = self.response
        response.status = "completed" if whole else "incomplete"
        response.incomplete_details = None if whole else Incomplete(reason="max_output_tokens")
        response.completed_at = self._time() if whole else None
        response.usage = _usage(end.usage)
        yield self._event(f"response.{response.status}", {"response": response})

    def _numbered(self, made: Iterator[Made]) -> Iterator[Event]:
        for kind, fields in made:
            self.response.output = self._output.items
            yield self._event(kind, fields)

    def _event(self, kind: str, fields: dict[str, Any]) -> Event:
        self._count += 1
        return Event(type=kind, sequence_number=self._count - 1, **fields)

    def _time(self) -> int:
        return int(time.time() if self._now is None else self._now)


def _begun(request: ResponseRequest, asked: Ask, now: int) -> Response:
    """Return an answer without output."""
    told = [tool for tool in request.tools or () if not isinstance(tool, OtherTool)]
    reasoning = request.reasoning
    choice = request.tool_choice
    return Response(
        id=f"resp_{asked.request_id}",
        object="response",
        created_at=now,
        completed_at=None,
        status="in_progress",
        background=False,
        error=None,
        incomplete_details=None,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        model=request.model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning=ReasoningSettings(
            effort=reasoning.effort if reasoning is not None else None,
            summary=reasoning.summary if reasoning is not None else None,
        ),
        store=request.store is not False,
        temperature=request.temperature,
        text=_text_options(request),
        tool_choice="auto" if choice is None else _tool_choice(choice),
        tools=[tool.model_dump(by_alias=True) for tool in told],
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        truncation="disabled",
        usage=None,
    )


def _tool_choice(choice: ToolChoice) -> Any:
    """Return a choice as requests have it: its type alone, or an object with more than its type."""
    given = choice.model_dump(exclude_none=True)
    return given if len(given) > 1 else choice.type


def _text_options(request: ResponseRequest) -> dict[str, Any]:
    if request.text is None or request.text.format is None:
        return {"format": {"type": "text"}}
    return request.text.model_dump(by_alias=True, exclude_none=True)


def _usage(counted: Counted) -> Usage:
    return Usage(
        input_tokens=counted.prompt_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=counted.cached_tokens, cache_write_tokens=counted.prompt_tokens - counted.cached_tokens
        ),
        output_tokens=counted.completion_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=counted.reasoning_tokens),
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
    )

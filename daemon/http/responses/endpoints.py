"""The endpoints of OpenAI's responses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from daemon.http.bodies import read_body
from daemon.http.errors import Problem, invalid, page_limit
from daemon.http.generation import Ask, count, events
from daemon.http.openai.errors import EVENTS
from daemon.http.responses.answer_types import Count, Event
from daemon.http.responses.answering import Answer
from daemon.http.responses.asking import EFFORT_FIELDS, ask, counted, without_effort
from daemon.http.responses.conversation import Conversation, deleted, found, page
from daemon.http.responses.errors import NAMES
from daemon.http.responses.request_types import CountRequest, ResponseRequest
from daemon.http.responses.store import Store
from daemon.http.streaming import begin, comment, event, failed, until_gone
from mlx_sidecar import AsyncClient, ContextLengthExceeded, GenerateEvent, InvalidArgument, Started

MOST_ITEMS = 100
"""Most items of a page."""

_store = Store()


async def create(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/responses`."""
    body = await read_body(request, ResponseRequest)
    conversation = Conversation(body, _store)
    asked = ask(body, conversation.before, conversation.given)
    answer = Answer(body, asked)
    if body.stream:
        framing = replace(EVENTS, error=lambda problem: _sent(answer.failed(problem)), names=NAMES)
        return await begin(request, _pieces(client, asked, answer, conversation), framing, asked.headers())
    warnings = await until_gone(request, _whole(client, asked, answer, conversation))
    return _json(answer.kept(), asked.headers(warnings))


async def _pieces(client: AsyncClient, asked: Ask, answer: Answer, conversation: Conversation) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(_events(client, asked, answer)) as generated:
            async for step in generated:
                if isinstance(step, Started):
                    for warning in step.warnings:
                        yield comment(warning)
                # Kept before its last event is sent: from then on a client may continue the conversation.
                for made in answer.add(step):
                    if made.type in ("response.completed", "response.incomplete"):
                        conversation.keep(answer.kept())
                    yield _sent([made])
    except ContextLengthExceeded as error:
        # Codex shortens a conversation by this event alone, which OpenAI sends as well; a status of 400 is its end.
        yield _sent(answer.failed(failed(error, NAMES)))


async def _whole(client: AsyncClient, asked: Ask, answer: Answer, conversation: Conversation) -> tuple[str, ...]:
    """Make the answer, keep it, and return the daemon's warnings."""
    warnings: tuple[str, ...] = ()
    async with aclosing(_events(client, asked, answer)) as generated:
        async for step in generated:
            if isinstance(step, Started):
                warnings = step.warnings
            for _ in answer.add(step):
                pass
    conversation.keep(answer.kept())
    return warnings


async def _events(client: AsyncClient, asked: Ask, answer: Answer) -> AsyncGenerator[GenerateEvent]:
    """Yield the events of a generation; a model that has no effort is asked without one, which the answer tells."""
    try:
        async with aclosing(events(client, asked)) as generated:
            async for step in generated:
                yield step
        return
    except InvalidArgument as error:
        if error.field not in EFFORT_FIELDS:
            raise
    answer.response.reasoning.effort = None
    async with aclosing(events(client, without_effort(asked))) as generated:
        async for step in generated:
            yield step


def _sent(made: Iterable[Event]) -> bytes:
    return b"".join(event(each.model_dump_json(exclude_unset=True, by_alias=True), each.type) for each in made)


async def count_tokens(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/responses/input_tokens`."""
    body = await read_body(request, CountRequest)
    conversation = Conversation(body, _store)
    asked = counted(body, conversation.before, conversation.given)
    tokens = await until_gone(request, _count(client, asked))
    return _json(Count(object="response.input_tokens", input_tokens=tokens), asked.headers())


async def _count(client: AsyncClient, asked: Ask) -> int:
    """Return the tokens of a prompt; of a model that has no effort, without one, as an answer is made."""
    try:
        return await count(client, asked)
    except InvalidArgument as error:
        if error.field not in EFFORT_FIELDS:
            raise
    return await count(client, without_effort(asked))


async def retrieve(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/responses/{id}`."""
    if request.query_params.get("stream", "false") != "false":
        raise invalid("stream", "is only for new responses")
    kept = found(_store, request.path_params["name"])
    return Response(kept.response, media_type="application/json")


async def delete(request: Request, client: AsyncClient) -> Response:
    """Answer `DELETE /v1/responses/{id}`."""
    return _json(deleted(_store, request.path_params["name"]))


async def cancel(request: Request, client: AsyncClient) -> Response:
    """Refuse `POST /v1/responses/{id}/cancel`: an answer that is being made ends with its connection."""
    found(_store, request.path_params["name"])
    raise Problem(400, "only a response with `background` can be cancelled; close the connection", code="not_running")


async def input_items(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/responses/{id}/input_items`."""
    kept = found(_store, request.path_params["name"])
    limit = page_limit(request.query_params.get("limit", "20"), MOST_ITEMS)
    order, after = request.query_params.get("order", "desc"), request.query_params.get("after")
    if order not in ("asc", "desc"):
        raise invalid("order", "is `asc` or `desc`")
    return _json(page(kept, limit=limit, after=after, newest_first=order == "desc"))


def _json(body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(exclude_unset=True), headers=headers, media_type="application/json")

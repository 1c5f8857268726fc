"""Anthropic's endpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from daemon.http.anthropic import messages, models, wishes
from daemon.http.anthropic.answers import MessageStream, message
from daemon.http.anthropic.errors import EVENTS, told
from daemon.http.anthropic.request_types import CountRequest, MessagesRequest
from daemon.http.bodies import read_body
from daemon.http.generation import Ask
from daemon.http.streaming import begin, comment, event, until_gone
from mlx_sidecar import AsyncClient, GenerateEvent, Started


async def create_message(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/messages`."""
    body = await read_body(request, MessagesRequest)
    asked = messages.asked(body)
    omitted = body.thinking is not None and body.thinking.display == "omitted"
    kept = asked.options.get("keep")
    if body.stream:
        stream = MessageStream(kept=kept, omitted=omitted)
        return await begin(request, _pieces(client, asked, stream), EVENTS, _headers(asked))
    seen = await until_gone(request, _all(client, asked))
    warnings = [text for one in seen if isinstance(one, Started) for text in one.warnings]
    return _json(message(seen, kept=kept, omitted=omitted), _headers(asked, warnings))


async def _pieces(client: AsyncClient, asked: Ask, stream: MessageStream) -> AsyncGenerator[bytes]:
    with told(asked.request_id):
        async with aclosing(wishes.events(client, asked)) as seen:
            async for one in seen:
                if isinstance(one, Started):
                    for warning in one.warnings:
                        yield comment(warning)
                for each in stream.events(one):
                    yield event(each.model_dump_json(), each.type)


async def _all(client: AsyncClient, asked: Ask) -> list[GenerateEvent]:
    with told(asked.request_id):
        async with aclosing(wishes.events(client, asked)) as seen:
            return [one async for one in seen]


async def count_tokens(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/messages/count_tokens`."""
    asked = messages.counted(await read_body(request, CountRequest))
    with told(asked.request_id):
        tokens, left = await until_gone(request, wishes.count(client, asked))
    return _json(models.Count(input_tokens=tokens), _headers(asked, left))


async def list_models(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models`."""
    return _json(models.page(await client.list_models(), request.query_params))


async def retrieve_model(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models/{id}`."""
    return _json(models.find(await client.list_models(), request.path_params["name"]))


def _headers(ask: Ask, warnings: Sequence[str] = ()) -> dict[str, str]:
    """Return the headers of an answer. SDKs read the request's id under a name of their own."""
    return {"request-id": ask.request_id, **ask.headers(warnings)}


def _json(body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), headers=headers, media_type="application/json")

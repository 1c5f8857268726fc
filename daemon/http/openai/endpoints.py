"""OpenAI's endpoints."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from daemon.http.bodies import read_body
from daemon.http.generation import Ask, events, whole
from daemon.http.openai import chat, models
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.openai.errors import DONE, EVENTS
from daemon.http.streaming import begin, event, until_gone
from mlx_sidecar import AsyncClient

NOTE = "x-mlx-sidecar-note"
"""Header with what a request has that has no effect."""


async def chat_completions(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/chat/completions`."""
    body = await read_body(request, ChatRequest)
    asked = chat.ask(body)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage is True
        return await begin(request, _chat_chunks(client, asked, include_usage), EVENTS, _notes(asked))
    answer = await until_gone(request, whole(client, asked))
    return _json(chat.completion(answer), _notes(asked))


async def _chat_chunks(client: AsyncClient, asked: Ask, include_usage: bool) -> AsyncGenerator[bytes]:
    stream = chat.ChatStream(include_usage=include_usage)
    async with aclosing(events(client, asked)) as seen:
        async for one in seen:
            for chunk in stream.chunks(one):
                yield event(chunk.model_dump_json(exclude_unset=True))
    yield DONE


async def list_models(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models`."""
    return _json(models.listing(await client.stats()))


async def retrieve_model(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models/{id}`."""
    return _json(models.find(await client.stats(), request.path_params["name"]))


def _notes(asked: Ask) -> dict[str, str]:
    return {NOTE: "; ".join(asked.notes)} if asked.notes else {}


def _json(body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(
        body.model_dump_json(exclude_unset=True, by_alias=True), headers=headers, media_type="application/json"
    )

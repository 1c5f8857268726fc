"""OpenAI's endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from daemon.http.bodies import read_body
from daemon.http.generation import Answer, Ask, events, samples
from daemon.http.openai import completions as plain
from daemon.http.openai import embeddings, models
from daemon.http.openai.chat import ask
from daemon.http.openai.chat_answers import ChatStream, completion
from daemon.http.openai.chat_types import ChatRequest
from daemon.http.openai.completion_types import CompletionRequest, PlainPrompt
from daemon.http.openai.embedding_types import EmbeddingRequest
from daemon.http.openai.errors import DONE, EVENTS
from daemon.http.streaming import begin, comment, event, until_gone
from mlx_sidecar import AsyncClient, Started

AT_ONCE = 16
"""Most prompts of a request that are asked at a time: the daemon's queue has no room for as many as one can have."""


async def chat_completions(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/chat/completions`."""
    body = await read_body(request, ChatRequest)
    asked = ask(body)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage is True
        stream = ChatStream(samples=body.n or 1, include_usage=include_usage)
        return await begin(request, _chat_chunks(client, asked, stream), EVENTS, asked.headers())
    answers = await until_gone(request, samples(client, asked))
    return _json(completion(answers), asked.headers(answers[0].started.warnings))


async def _chat_chunks(client: AsyncClient, asked: Ask, stream: ChatStream) -> AsyncGenerator[bytes]:
    async with aclosing(events(client, asked)) as generated:
        async for step in generated:
            if isinstance(step, Started):
                for warning in step.warnings:
                    yield comment(warning)
            for chunk in stream.chunks(step):
                yield event(chunk.model_dump_json(exclude_unset=True))
    yield DONE


async def completions(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/completions`."""
    body = await read_body(request, CompletionRequest)
    asked = plain.asks(body)
    echoes = await until_gone(request, _echoes(client, body))
    if body.stream:
        stream = plain.CompletionStream(body, echoes[0])
        return await begin(request, _plain_chunks(client, asked[0], stream), EVENTS, asked[0].headers())
    answers = await until_gone(request, _all(client, asked))
    return _json(plain.completion(body, answers, echoes), asked[0].headers())


async def _plain_chunks(client: AsyncClient, asked: Ask, stream: plain.CompletionStream) -> AsyncGenerator[bytes]:
    async with aclosing(events(client, asked)) as generated:
        async for step in generated:
            for chunk in stream.chunks(step):
                yield event(chunk.model_dump_json(exclude_unset=True))
    yield DONE


async def _echoes(client: AsyncClient, body: CompletionRequest) -> list[plain.Echo]:
    """Return what answers to each prompt begin with. The texts of token ids are the daemon's to tell."""
    if not body.echo:
        return [plain.NO_ECHO] * len(body.prompt)
    return [await _echo(client, body.model, prompt) for prompt in body.prompt]


async def _echo(client: AsyncClient, model: str, prompt: PlainPrompt) -> plain.Echo:
    if not prompt.tokens:
        return plain.Echo(prompt.text or "")
    text, first = [(await client.tokenize(model, ids)).text for ids in (prompt.tokens, prompt.tokens[:1])]
    return plain.Echo(text, first)


async def _all(client: AsyncClient, asked: Sequence[Ask]) -> list[list[Answer]]:
    """Return the samples of the answers to all prompts. If one fails, the others are cancelled."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def answered(call: Ask) -> list[Answer]:
        async with turn:
            return await samples(client, call)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(call)) for call in asked]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def embed(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /v1/embeddings`."""
    body = await read_body(request, EmbeddingRequest)
    asked = Ask(body.model, "")  # for its name alone
    options = embeddings.options(body) | {"request_id": asked.request_id}
    found = await until_gone(request, client.embed(body.model, body.input, **options))
    return _json(embeddings.answer(body, found), asked.headers())


async def list_models(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models`."""
    return _json(models.listing(await client.list_models()))


async def retrieve_model(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /v1/models/{id}`."""
    return _json(models.find(await client.list_models(), request.path_params["name"]))


def _json(body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(
        body.model_dump_json(exclude_unset=True, by_alias=True), headers=headers, media_type="application/json"
    )

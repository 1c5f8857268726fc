"""Ollama's endpoints that generate or embed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from daemon.http.bodies import read_body
from daemon.http.generation import Ask, collect
from daemon.http.ollama import chat, embed, generate
from daemon.http.ollama.chat import ChatAnswer
from daemon.http.ollama.chat_types import ChatRequest
from daemon.http.ollama.embed_types import EmbeddingsRequest, EmbedRequest
from daemon.http.ollama.errors import framing, line
from daemon.http.ollama.figures import Figures
from daemon.http.ollama.generate import GenerateAnswer
from daemon.http.ollama.generate_types import GenerateRequest
from daemon.http.ollama.residence import UNLOAD, leave, resident, settle
from daemon.http.ollama.shared_types import Generation
from daemon.http.ollama.thinking import thought_events
from daemon.http.streaming import begin, until_gone
from mlx_sidecar import AsyncClient, GenerateEvent


async def chat_answer(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/chat`."""
    body = await read_body(request, ChatRequest)
    figures = Figures(body.model)
    call = Call(client, body, chat.ask(body), ChatAnswer(figures), figures)
    return await call.respond(request, load=not body.messages)


async def generate_answer(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/generate`."""
    body = await read_body(request, GenerateRequest)
    figures = Figures(body.model)
    call = Call(client, body, generate.ask(body), GenerateAnswer(figures), figures)
    return await call.respond(request, load=not body.prompt)


class Call:
    """
    A request that generates.

    Args:
        client: Calls the daemon.
        body: The request.
        asked: What it asks of the daemon.
        answer: Makes the pieces of its answer.
        figures: What the answer has besides words.
    """

    def __init__(
        self, client: AsyncClient, body: Generation, asked: Ask, answer: ChatAnswer | GenerateAnswer, figures: Figures
    ) -> None:
        self._client = client
        self._keep = body.keep_alive
        self._streams = body.stream is not False
        self._asked = asked
        self._answer = answer
        self._figures = figures

    async def respond(self, request: Request, *, load: bool) -> Response:
        """Answer the request; `load` for one that has nothing to answer, and loads or unloads its model."""
        if self._streams:
            pieces = self._load_pieces() if load else self._pieces()
            return await begin(request, pieces, framing(self._answer.empty()), self._asked.headers())
        return await answered(request, self._load() if load else self._whole(), self._asked.headers())

    async def _load(self) -> BaseModel:
        if self._keep == UNLOAD:
            await leave(self._client, self._asked.model)
            return self._answer.loaded("unload")
        await settle(self._client, self._asked.model, self._keep, load=True)
        return self._answer.loaded("load")

    async def _load_pieces(self) -> AsyncGenerator[bytes]:
        yield line(await self._load())

    async def _whole(self) -> BaseModel:
        async with self._resident() as self._figures.loading, self._events() as seen:
            answer = collect([event async for event in seen])
        return self._answer.whole(answer)

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """Yield the lines of an answer. With the last one the model is gone, if it is unloaded."""
        last = b""
        async with self._resident() as self._figures.loading, self._events() as seen:
            async for event in seen:
                for piece in self._answer.pieces(event):
                    if piece.done:
                        last = line(piece)
                    else:
                        yield line(piece)
        yield last

    def _resident(self) -> AbstractAsyncContextManager[float]:
        return resident(self._client, self._asked.model, self._keep)

    def _events(self) -> AbstractAsyncContextManager[AsyncGenerator[GenerateEvent]]:
        return aclosing(thought_events(self._client, self._asked))


async def embed_texts(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/embed`."""
    body = await read_body(request, EmbedRequest)
    return await answered(request, embed.vectors(client, body))


async def embed_prompt(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/embeddings`."""
    body = await read_body(request, EmbeddingsRequest)
    return await answered(request, embed.vector(client, body))


async def answered(
    request: Request, work: Coroutine[Any, Any, BaseModel], headers: dict[str, str] | None = None
) -> Response:
    """Return the result of work as a response; the work is cancelled when the client goes away."""
    result = await until_gone(request, work)
    return Response(result.model_dump_json(exclude_unset=True), headers=headers, media_type="application/json")

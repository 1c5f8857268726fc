"""Ollama's endpoints about models: what there is, what it can do, and how another one is fetched."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from daemon.http.bodies import read_body
from daemon.http.errors import Problem, invalid
from daemon.http.ollama import models
from daemon.http.ollama.endpoints import answered
from daemon.http.ollama.errors import framing, line
from daemon.http.ollama.model_types import (
    LoadedModels,
    Models,
    Named,
    Progress,
    PullRequest,
    Shown,
    ShowRequest,
    Version,
)
from daemon.http.ollama.names import daemon_name
from daemon.http.streaming import begin
from mlx_sidecar import AsyncClient, LoadProgress

API_VERSION = "0.13.0"
"""Version of Ollama that has this API. Clients refuse to work with one that is too old for them."""

DONE = Progress.model_construct(status="success")
"""The end of a pull."""


async def root(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /` in the words by which clients find an Ollama."""
    return Response("Ollama is running", media_type="text/plain")


async def version(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /api/version`."""
    return Response(Version(version=API_VERSION).model_dump_json(), media_type="application/json")


async def tags(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /api/tags`."""

    async def work() -> Models:
        return models.listing(await client.list_models())

    return await answered(request, work())


async def ps(request: Request, client: AsyncClient) -> Response:
    """Answer `GET /api/ps`."""

    async def work() -> LoadedModels:
        return models.loaded(await client.stats(), time.time())

    return await answered(request, work())


async def show(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/show`. The weights stay where they are."""
    name = _name(await read_body(request, ShowRequest))

    async def work() -> Shown:
        info = await client.load(name, estimate_only=True)
        return models.shown(name, await client.list_models(), info)

    return await answered(request, work())


async def pull(request: Request, client: AsyncClient) -> Response:
    """Answer `POST /api/pull`: fetch a model into the Hub's cache, or what is new of it, and load nothing."""
    body = await read_body(request, PullRequest)
    pieces = _pull(client, _name(body))
    if body.stream is not False:
        return await begin(request, _lines(pieces), framing(None))

    async def work() -> Progress:
        async with aclosing(pieces) as steps:
            return [step async for step in steps][-1]

    return await answered(request, work())


async def _pull(client: AsyncClient, name: str) -> AsyncGenerator[Progress]:
    async with client.get_or_load(name, allow_download=True, estimate_only=True, update=True) as stream:
        async for event in stream:
            if isinstance(event, LoadProgress):
                yield models.progress(name, event)
        for warning in (await stream.result()).warnings:
            yield Progress.model_construct(status=warning)
    yield DONE


async def _lines(pieces: AsyncGenerator[Progress]) -> AsyncGenerator[bytes]:
    async with aclosing(pieces) as steps:
        async for step in steps:
            yield line(step)


def _name(body: Named) -> str:
    if not (name := body.model or body.name):
        raise invalid("model", "is missing")
    return daemon_name(name)


async def create(request: Request, client: AsyncClient) -> Response:
    """Refuse `POST /api/create` and its blobs."""
    raise _refused("models are not made here: convert one with mlx_lm.convert, and name its directory")


async def copy(request: Request, client: AsyncClient) -> Response:
    """Refuse `POST /api/copy`."""
    raise _refused("models are not copied: give one a short name under [aliases] in the configuration")


async def push(request: Request, client: AsyncClient) -> Response:
    """Refuse `POST /api/push`."""
    raise _refused("models are not published: use `hf upload`")


async def delete(request: Request, client: AsyncClient) -> Response:
    """Refuse `DELETE /api/delete`."""
    raise _refused("models are not deleted over HTTP: run `mlx-sidecar rm NAME`")


def _refused(text: str) -> Problem:
    return Problem(501, text, code="unsupported_endpoint")

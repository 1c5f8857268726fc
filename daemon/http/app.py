"""The application of the door: finds the API of a request, runs its handler, and shapes what goes wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.http.access import Policy, guarded
from daemon.http.api import Api, Endpoint, served
from daemon.http.errors import ClientGone, Problem, error_response, problem
from daemon.http.streaming import failed
from mlx_sidecar import AsyncClient

CLIENT_GONE = 499
"""Status of a response that is never read, as nginx logs it."""


def build(client: AsyncClient, policy: Policy, apis: Sequence[Api] | None = None) -> ASGIApp:
    """
    Return the application.

    Args:
        client: Calls the daemon.
        policy: Which requests may use it.
        apis: What is served; None for all. The last one gets what no other claims.
    """
    found = served() if apis is None else apis
    doors = [(api, _application(api, client)) for api in found]

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await _choose(doors, HTTPConnection(scope))[1](scope, receive, send)

    def refuse(connection: HTTPConnection, found: Problem) -> Response:
        return _shaped(_choose(doors, connection)[0], found)

    return guarded(dispatch, policy, refuse)


def _choose(doors: Sequence[tuple[Api, ASGIApp]], connection: HTTPConnection) -> tuple[Api, ASGIApp]:
    return next((pair for pair in doors if pair[0].claims(connection)), doors[-1])


def _application(api: Api, client: AsyncClient) -> ASGIApp:
    async def shaped(request: Request, error: Exception) -> Response:
        return _answer_error(api, error)

    application = Starlette(
        routes=[_route(api, one, client) for one in api.endpoints] + _common(api, client),
        exception_handlers={HTTPException: shaped},
    )
    application.router.redirect_slashes = False
    return application


def _route(api: Api, endpoint: Endpoint, client: AsyncClient) -> Route:
    return Route(endpoint.path, _endpoint(api, partial(_call, endpoint, client)), methods=[endpoint.method])


async def _call(endpoint: Endpoint, client: AsyncClient, request: Request) -> Response:
    return await endpoint.handler(request, client)


def _common(api: Api, client: AsyncClient) -> list[Route]:
    """Return the routes that each application has: some clients look for them before anything else."""

    async def root(request: Request) -> Response:
        return Response()

    async def health(request: Request) -> Response:
        await client.stats()
        return Response(b'{"status":"ok"}', media_type="application/json")

    return [
        Route("/", root, methods=["GET"]),
        Route("/health", _endpoint(api, health), methods=["GET"]),
    ]


def _endpoint(api: Api, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            return _answer_error(api, error)

    return endpoint


def _answer_error(api: Api, error: Exception) -> Response:
    match error:
        case ClientGone():
            return Response(status_code=CLIENT_GONE)
        case HTTPException(status_code=status, detail=detail):
            return _shaped(api, Problem(status, detail, code="not_found" if status == 404 else "invalid_request"))
    return _shaped(api, problem(error, api.names) or failed(error))


def _shaped(api: Api, found: Problem) -> Response:
    status, body = api.shape(found)
    return error_response(status, body, found)

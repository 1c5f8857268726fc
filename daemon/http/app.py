"""The application of the door: finds the API of a request, runs its handler, and shapes what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.http.access import Policy, guarded
from daemon.http.api import Api, Endpoint, Routes, served
from daemon.http.daemon_client import DaemonClient
from daemon.http.errors import ClientGone, Problem, error_response
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
    mounted = [_MountedApi(api, client) for api in (served() if apis is None else apis)]

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        response = await _common(connection, client, mounted)
        await (response or _choose(mounted, connection).application)(scope, receive, send)

    def refuse(connection: HTTPConnection, problem: Problem) -> Response:
        return _choose(mounted, connection).response(problem)

    return guarded(dispatch, policy, refuse)


class _MountedApi:
    """
    An API with its application, which is built at its first request.

    Args:
        api: The API.
        client: Calls the daemon.
    """

    def __init__(self, api: Api, client: AsyncClient) -> None:
        self.api = api
        self._client = client

    @cached_property
    def routes(self) -> Routes:
        """What the API serves."""
        return self.api.load()

    @cached_property
    def application(self) -> ASGIApp:
        """Answers its requests."""

        routes = [Route(each.path, self._handler(each), methods=[each.method]) for each in self.routes.endpoints]

        async def unserved(request: Request, error: Exception) -> Response:
            match error:
                case HTTPException(status_code=404):
                    return self.answer_error(_no_such_path(request.scope["path"]))
                case HTTPException(status_code=405):
                    return self.answer_error(HTTPException(405, headers={"Allow": _methods(routes, request.scope)}))
            return self.answer_error(error)

        application = Starlette(routes=routes, exception_handlers={HTTPException: unserved})
        application.router.redirect_slashes = False
        return application

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def handler(request: Request) -> Response:
            try:
                return await endpoint.handler(request, self._client)
            except Exception as error:
                return self.answer_error(error)

        return handler

    def answer_error(self, error: Exception) -> Response:
        """Return the response to a request that failed."""
        match error:
            case ClientGone():
                return Response(status_code=CLIENT_GONE)
            case HTTPException(status_code=405, headers=headers):
                allowed = (headers or {})["Allow"]
                text = f"this path is not served with this method, but with {allowed}"
                response = self.response(Problem(405, text, code="method_not_allowed"))
                response.headers["Allow"] = allowed
                return response
        return self.response(failed(error, self.routes.names))

    def response(self, problem: Problem) -> Response:
        """Return the response that tells a problem, in the shape of the API."""
        status, body = self.routes.shape(problem)
        return error_response(status, body, problem)


def _no_such_path(path: str) -> Problem:
    """Return the problem of a path that is not served, with what is wrong where a base URL is."""
    hint = "; docs/http.md lists them"
    if path.startswith("/v1/v1/"):
        hint = ": it has /v1 twice, so leave it out of the base URL"
    elif not path.startswith(("/v1/", "/api/")):
        hint = ": a base URL for OpenAI's SDKs ends with /v1; docs/http.md lists all paths"
    return Problem(404, f"there is no such path here{hint}", code="not_found")


def _methods(routes: Sequence[Route], scope: Scope) -> str:
    """Return the methods that a path is served with; starlette's own error has those of the first route alone."""
    methods = [route.methods or () for route in routes if route.matches(scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for some in methods for method in some}))


def _choose(mounted: Sequence[_MountedApi], connection: HTTPConnection) -> _MountedApi:
    return next((each for each in mounted if each.api.claims(connection)), mounted[-1])


async def _common(connection: HTTPConnection, client: AsyncClient, mounted: Sequence[_MountedApi]) -> Response | None:
    """Return the response to a request that is of no API: clients and the parent look whether the door is there."""
    match connection.scope["method"], connection.scope["path"]:
        case "HEAD", "/":
            return Response()
        case "GET" | "HEAD", "/health":
            try:
                return await _health(client)
            except Exception as error:
                return _choose(mounted, connection).answer_error(error)
        case _, "/health":
            return _choose(mounted, connection).answer_error(HTTPException(405, headers={"Allow": "GET, HEAD"}))
    return None


async def _health(client: AsyncClient) -> Response:
    await client.stats()
    steadied = dict(client.steadied) if isinstance(client, DaemonClient) else {}
    return Response(json.dumps({"status": "ok", "steadied": steadied}), media_type="application/json")

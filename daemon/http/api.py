"""The description of an API that the door serves: which requests belong to it, and the endpoints that answer them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from daemon.http.errors import Problem
from daemon.http.parameters import Parameters
from mlx_sidecar import AsyncClient

Handler = Callable[[Request, AsyncClient], Awaitable[Response]]
"""Answers a request. It raises `Problem`, `SidecarError` or pydantic's ValidationError for a request that fails."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    A path with a method.

    Attributes:
        method: "GET", "POST" or "DELETE".
        path: As starlette writes it, such as "/v1/models/{name:path}".
        handler: Answers its requests.
        types: The types of its body with their parameters, the body's own first; none if it has no body. They become
            tables of docs/http.md, each under its title.
    """

    method: str
    path: str
    handler: Handler
    types: Mapping[str, type[Parameters]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Routes:
    """
    What an API serves.

    Attributes:
        endpoints: Its paths.
        shape: Returns status and body of an error. The status is the problem's unless the API has one of its own.
        names: The API's parameter for each field of the gRPC API that has another name there.
    """

    endpoints: tuple[Endpoint, ...]
    shape: Callable[[Problem], tuple[int, bytes]]
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Api:
    """
    An API. Its types and translations are imported at its first request: most doors serve one API, or two.

    Attributes:
        name: Its name in the documentation.
        claims: Whether a request is one of this API: decides which API answers, and in which shape an error comes, also
            where no endpoint has the path. One API, the fallback, gets what no other claims.
        load: Imports and returns what it serves.
        fallback: Whether it is asked last.
    """

    name: str
    claims: Callable[[HTTPConnection], bool]
    load: Callable[[], Routes]
    fallback: bool = False


def served() -> list[Api]:
    """Return all APIs, in the order in which they are asked: each folder of this package has one, named `API`."""
    import daemon.http

    found = [
        import_module(f"daemon.http.{module.name}").API
        for module in sorted(iter_modules(daemon.http.__path__), key=lambda one: one.name)
        if module.ispkg
    ]
    return sorted(found, key=lambda api: api.fallback)

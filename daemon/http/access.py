"""
Access to the door: which requests are let in, before anything of their body is read.

    framing    one Host, not both Content-Length and Transfer-Encoding      400
    host       a port is used under a loopback name, or one that is allowed 421
    origin     a browser's page only if it is configured                    403
    token      on a port, as a bearer token or as x-api-key                 401
    size       by Content-Length; what is received is counted as well       413

A Unix socket in a private directory needs neither a host nor a token: other users and browsers cannot reach it. A page
of another site can make a browser send requests to a port of this machine, under the page's own host name too (DNS
rebinding). Such a request has an origin, a foreign host or a `Sec-Fetch-Site`, and no token.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.http.errors import Problem
from daemon.http.generation import NOTE
from daemon.shared.log_pace import LogPace

MOST_BYTES = 16 << 20
"""Most bytes of a body: twice as much as a request of the gRPC API may have, because JSON takes more."""
LINGER_SECONDS = 1.0
"""Longest time in which the rest of a refused request is read."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOLD = ("x-request-id", "request-id", "retry-after", "retry-after-ms", NOTE)
"""Headers of responses that pages may read; browsers hide others from them."""
_BROWSER_SITES = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` of requests that another page caused; pages cannot change this header."""

log = structlog.get_logger()

Refuse = Callable[[HTTPConnection, Problem], Response]
"""Returns the response for a problem in the shape of the API that the request is for."""


@dataclass(frozen=True, slots=True)
class Policy:
    """
    Which requests may use the door.

    Attributes:
        token: What each request must carry; None: no request needs one.
        loopback_only: Whether the host must be a loopback name.
        origins: Origins of browser pages that may call.
        hosts: More names that the host may be, such as that by which containers know this machine.
    """

    token: str | None
    loopback_only: bool
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


def guarded(app: ASGIApp, policy: Policy, refuse: Refuse) -> ASGIApp:
    """Return an application that gets only requests that the policy lets in."""
    app = Gate(app, refuse, lambda headers, scope: (_token(policy, headers, scope), _size(headers)))
    if policy.origins:
        from starlette.middleware.cors import CORSMiddleware

        # Between the gates: a browser asks without a token whether it may call, and this answers.
        every = ["*"]
        app = CORSMiddleware(
            app, allow_origins=policy.origins, allow_methods=every, allow_headers=every, expose_headers=TOLD
        )
    return Gate(app, refuse, lambda headers, _: (_framing(headers), _host(policy, headers), _origin(policy, headers)))


class Gate:
    """
    Lets a request pass, or refuses it.

    Args:
        app: Gets the requests that pass.
        refuse: Shapes a refusal.
        look: Returns a problem, or None, for each check.
    """

    def __init__(
        self, app: ASGIApp, refuse: Refuse, look: Callable[[Headers, Scope], tuple[Problem | None, ...]]
    ) -> None:
        self._app = app
        self._refuse = refuse
        self._look = look
        self._pace = LogPace(time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI asks for it."""
        found = next(filter(None, self._look(Headers(scope=scope), scope)), None)
        if found is None:
            await self._app(scope, receive, send)
            return
        if calls := self._pace.due(str(found.code)):
            log.warning("http_refused", status=found.status, reason=found.code, calls=calls)
        response = self._refuse(HTTPConnection(scope), found)
        response.headers["connection"] = "close"
        await response(scope, receive, _lingering(receive, send))


def _lingering(receive: Receive, send: Send) -> Send:
    """
    Return a `send` that ends a response when the client has sent the rest of its request, or after a second.

    A connection that is closed while its client still sends is reset, and the response may be lost with it.
    """

    async def linger(message: Message) -> None:
        if message["type"] == "http.response.body":
            await send({**message, "more_body": True})
            await _discard(receive)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return linger


async def _discard(receive: Receive) -> None:
    """Read the rest of a request and keep nothing of it."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        return


def _framing(headers: Headers) -> Problem | None:
    if "content-length" in headers and "transfer-encoding" in headers:
        return Problem(400, "a request has Content-Length or Transfer-Encoding, not both", code="invalid_framing")
    if len(headers.getlist("host")) != 1:
        return Problem(400, "a request has one Host", code="invalid_framing")
    return None


def _host(policy: Policy, headers: Headers) -> Problem | None:
    name, colon, port = headers["host"].rpartition(":") if not headers["host"].endswith("]") else ("", "", "")
    host = (name if colon and port.isdigit() else headers["host"]).lower()
    if policy.loopback_only and host not in LOOPBACK and host not in policy.hosts:
        text = "this server is for this machine: use 127.0.0.1 or localhost; http_hosts in the configuration has others"
        return Problem(421, text, code="invalid_host")
    return None


def _origin(policy: Policy, headers: Headers) -> Problem | None:
    origin = headers.get("origin")
    known = origin in policy.origins
    if (origin is not None or headers.get("sec-fetch-site") in _BROWSER_SITES) and not known:
        text = "pages of a browser may not call this server; http_origins in the configuration allows some"
        return Problem(403, text, code="invalid_origin")
    return None


def _token(policy: Policy, headers: Headers, scope: Scope) -> Problem | None:
    if policy.token is None or (scope["method"] == "HEAD" and scope["path"] == "/"):
        return None
    bearer = re.sub(r"^bearer ", "", headers.get("authorization", ""), flags=re.IGNORECASE)
    given = [headers.get("x-api-key", ""), bearer.strip()]
    # Both are compared, always: the time tells nothing about the token.
    if any([hmac.compare_digest(one.encode(), policy.token.encode()) for one in given]):  # noqa: C419
        return None
    text = "a token is needed, as `Authorization: Bearer` or `x-api-key`; see: mlx-sidecar http --print-token"
    return Problem(401, text, code="invalid_api_key")


def _size(headers: Headers) -> Problem | None:
    length = headers.get("content-length", "0")
    return too_large() if not length.isdigit() or int(length[:20]) > MOST_BYTES else None


def too_large() -> Problem:
    """Return the problem of a body that is too large."""
    return Problem(413, f"the body has more than {MOST_BYTES >> 20} MiB", code="request_too_large")

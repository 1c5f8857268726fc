"""A door whose requests are built, and reach no daemon."""

from __future__ import annotations

from typing import Any

from daemon.http.access import Policy
from daemon.http.api import Endpoint
from daemon.http.app import build
from mlx_sidecar import AsyncClient, DaemonNotRunning
from tests.support.asgi import Request


class NoDaemon(AsyncClient):
    """A client that builds each request and sends none."""

    async def _connect(self) -> Any:
        raise DaemonNotRunning("none")


APP = build(NoDaemon("/nowhere/s.sock"), Policy(None, loopback_only=False))


async def status(endpoint: Endpoint, body: bytes) -> tuple[int, Any]:
    """Return status and body of the answer to a request."""
    response = await Request(endpoint.method, endpoint.path, body).to(APP)
    return response.status, response.json

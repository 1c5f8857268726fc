"""Calls an ASGI application in this process, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass(slots=True)
class Response:
    """What an application sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Request:
    """
    One request of a client that stays until `leave`.

    Attributes:
        response: What came so far.
        arrived: Set with each message.
    """

    def __init__(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        given = {"host": "localhost", "content-length": str(len(body)), **(headers or {})}
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": None,
            "server": None,
        }
        self.response = Response()
        self.arrived = asyncio.Event()
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})

    def leave(self) -> None:
        """Close the connection."""
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def to(self, app: ASGIApp) -> Response:
        """Send it, and return the response once the application is done."""
        await app(self.scope, self._incoming.get, self._send)
        return self.response

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.response.status = message["status"]
            self.response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif message.get("body"):
            self.response.pieces.append(message["body"])
        self.arrived.set()

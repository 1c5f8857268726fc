"""
HTTP connections: uvicorn's protocol on h11, with limits in time for a client that sends or reads too slowly.

h11 is strict: a request that could be read in two ways is answered with 400 and ends the connection. uvicorn itself has
no limit for a request's head, nor for a response that is not read.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Longest time from a connection, or from the first byte of a further request, to the end of the request's head."""
IDLE_SECONDS = 60
"""Longest time between two requests of a connection."""
LAG_SECONDS = 30.0
"""Longest time in which a client reads nothing of its response."""
HEAD_BYTES = 32 * 1024
"""Most bytes of a request's head."""

log = structlog.get_logger()


class Connection(H11Protocol):
    """A connection of a client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.app = self._limited(self.app)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a head."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read on; a head that was begun has to end in time."""
        super().data_received(data)
        if self._between_requests():
            self._expect_head()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._stop_timer()
        super().on_response_complete()
        if self._between_requests() and self.conn.trailing_data[0]:
            self._expect_head()  # a part of it came with the request before

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _limited(self, app: Any) -> ASGIApp:
        """Return the application with a limit on each write of a response."""

        async def limited(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_in_time(message: Message) -> None:
                try:
                    async with asyncio.timeout(LAG_SECONDS):
                        await send(message)
                except TimeoutError:
                    log.warning("http_client_lags", limit_s=LAG_SECONDS)
                    self.transport.abort()  # closing would wait until the rest is read

            await app(scope, receive, send_in_time)

        return limited

"""
Streams: an answer piece by piece, with signs of life while nothing comes, for a client that may go away or lag.

    hold          up to 5 s for the first piece: until then an error still has a status of its own
      |
    status 200    pieces as they come; after 5 s without a piece, a sign of life (a comment, a ping)
      |
    end           the last piece, or an error in the API's shape: the status cannot change any more

The client is watched all the time. When it goes away, the pieces are closed, which cancels the call to the daemon
within a step. A client that does not read makes a write wait, so that no more pieces are read: the daemon then holds
the call, and sends fewer and larger pieces later. `protocol.py` ends a connection that is not read for too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from daemon.http.errors import ClientGone, Problem, problem
from daemon.shared.log_fields import cause

HOLD_SECONDS = 5.0
"""Longest wait for the first piece before the status is sent."""
QUIET_SECONDS = 5.0
"""Longest time without a piece; then a sign of life is sent."""

HEADERS: Mapping[str, str] = {"cache-control": "no-store, no-transform", "x-accel-buffering": "no"}
"""
Headers of each stream. The first has proxies neither keep nor compress it. The second has nginx, and proxies like it,
pass on each piece at once.
"""

ResultT = TypeVar("ResultT")
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Framing:
    """
    The form of a stream.

    Attributes:
        media_type: Of the response.
        alive: Sign of life that clients skip; None sends none.
        error: Returns the piece for a failure after the status was sent.
        names: The API's parameter for each field of the gRPC API that has another name there.
    """

    media_type: str
    alive: bytes | None
    error: Callable[[Problem], bytes]
    names: Mapping[str, str] = field(default_factory=dict)


_ENDS = tuple((end.encode(), f"\\u{ord(end):04x}".encode()) for end in "\x85\u2028\u2029")
"""Characters that JSON has as they are, and at which Python's `splitlines` ends a line; each with its escape."""


def one_line(text: bytes) -> bytes:
    """Return JSON as one line for all clients: httpx's `iter_lines`, and others of Python, know more ends than LF."""
    for end, escaped in _ENDS:
        text = text.replace(end, escaped)
    return text


def event(data: bytes | str, name: str = "") -> bytes:
    """Return a server-sent event; `data` has no line breaks, as JSON has none."""
    text = one_line(data.encode() if isinstance(data, str) else data)
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + text + b"\n\n"


def comment(text: str) -> bytes:
    """Return a comment among server-sent events, which clients skip and a person may read."""
    return f": {' '.join(text.split())}\n\n".encode()


async def until_gone(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """
    Return the result of work that is cancelled when the client goes away.

    The body must have been read.

    Raises:
        ClientGone: If the client went away.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return await task
    finally:
        await _end(gone)
        await _end(task)


async def begin(
    request: Request, pieces: AsyncIterator[bytes], framing: Framing, headers: Mapping[str, str] | None = None
) -> Response:
    """
    Return a response that streams pieces, once the first is there or the wait for it is over.

    Args:
        request: Its body must have been read.
        pieces: Encoded pieces. Closed when the client goes away.
        framing: The form of the stream.
        headers: More headers.

    Raises:
        ClientGone: If the client went away before.
        Exception: What `pieces` raised before its first piece.
    """
    stream = Stream(pieces, framing, request.receive, headers or {})
    await stream.hold(HOLD_SECONDS)
    return stream


class Stream(Response):
    """
    A streamed response; see the module.

    Args:
        pieces: Encoded pieces.
        framing: The form of the stream.
        receive: Tells when the client goes away.
        headers: More headers.
    """

    def __init__(
        self, pieces: AsyncIterator[bytes], framing: Framing, receive: Receive, headers: Mapping[str, str]
    ) -> None:
        self.background = None
        self.body = b""
        self.status_code = 200
        self.media_type = framing.media_type
        self.init_headers({**HEADERS, **headers})
        del self.headers["content-length"]
        self._pieces = pieces
        self._framing = framing
        self._gone = asyncio.ensure_future(_gone(receive))
        self._first = asyncio.create_task(_first(pieces))
        self._pump: asyncio.Task[None] | None = None
        self._last = 0.0
        """When the last piece was there, in seconds of the event loop."""
        self._turn = asyncio.Lock()

    async def hold(self, seconds: float) -> None:
        """Wait for the first piece; raises as `begin` does."""
        try:
            await asyncio.wait({self._first, self._gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if self._first.done() and (error := self._first.exception()) and not isinstance(error, _Ended):
                raise error
            if self._gone.done():
                raise ClientGone
        except BaseException:
            await self.close()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI asks for it."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_pieces(send)
        finally:
            await self.close()

    async def close(self) -> None:
        """Stop reading pieces, which cancels what makes them."""
        if self._pump is not None:
            await _end(self._pump)
        await _end(self._first)
        await _end(self._gone)
        if (aclose := getattr(self._pieces, "aclose", None)) is not None:
            await aclose()

    async def _send_pieces(self, send: Send) -> None:
        """Let pieces be sent, and send a sign of life each time that none came for a while."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._pump = asyncio.create_task(self._send_all(send))
        while not self._gone.done() and not self._pump.done():
            quiet = self._last + QUIET_SECONDS - loop.time()
            if quiet > 0:
                await asyncio.wait({self._pump, self._gone}, timeout=quiet, return_when=asyncio.FIRST_COMPLETED)
                continue
            self._last = loop.time()
            if self._framing.alive is not None and not self._turn.locked():  # a client that lags needs no sign
                await self._send(send, self._framing.alive)
        if self._pump.done():
            self._pump.result()

    async def _send_all(self, send: Send) -> None:
        """Send each piece as it comes, without a task of its own: that would cost more than the piece."""
        try:
            await self._send(send, await self._first)
            async for piece in self._pieces:
                await self._send(send, piece)
        except _Ended:
            pass
        except Exception as error:
            await self._send(send, self._framing.error(failed(error, self._framing.names)))
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, piece: bytes, more: bool = True) -> None:
        self._last = asyncio.get_running_loop().time()
        async with self._turn:
            await send({"type": "http.response.body", "body": piece, "more_body": more})


def failed(error: Exception, names: Mapping[str, str]) -> Problem:
    """Return the problem of any error, as `problem` does; a bug is logged."""
    found = problem(error, names)
    if found is None:
        log.error("http_failed", exc_info=error, error=cause(error))
        found = Problem(500, "the door failed; its log has more", code="internal")
    return found


class _Ended(Exception):  # noqa: N818 - a state, and no fault of the program
    """There are no more pieces. A task cannot raise StopAsyncIteration."""


async def _first(pieces: AsyncIterator[bytes]) -> bytes:
    try:
        return await anext(pieces)
    except StopAsyncIteration:
        raise _Ended from None


async def _gone(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Task[Any] | asyncio.Future[Any]) -> None:
    """Cancel a task and wait for its end; its result or error is of no interest any more."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.exception()

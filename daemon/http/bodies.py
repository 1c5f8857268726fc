"""Bodies of requests: received within limits of size, time and memory, and read as the type of the request."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from daemon.http.access import MOST_BYTES, too_large
from daemon.http.errors import ClientGone, Problem
from daemon.http.parameters import Parameters, check

RECEIVE_SECONDS = 30.0
"""Longest time in which a body arrives whole."""
MOST_TOGETHER = 64 << 20
"""Most bytes of all bodies that are being received."""
MOST_PARTS = 131_072
"""
Most texts, lists and objects of a body; names of fields are texts. A request of the gRPC API may have a quarter as many
parts, because JSON has names. Sixteen megabytes can hold five million, and would hold up all other requests.
"""

ParametersT = TypeVar("ParametersT", bound=Parameters)


class Bodies:
    """
    The bodies that are being received.

    Attributes:
        held: Their bytes so far.
    """

    def __init__(self) -> None:
        self.held = 0

    async def read(self, request: Request, kind: type[ParametersT]) -> ParametersT:
        """
        Receive a body and return it as its type, its parameters checked.

        Raises:
            Problem: If it is compressed, too large, too slow, one of too many, has too many parts, or has a parameter
                that is refused.
            ValidationError: If it is no JSON, or has a wrong type.
            ClientGone: If the client went away.
        """
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "the body is compressed; send it as it is", code="unsupported_encoding")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(RECEIVE_SECONDS):
                await self._receive(request, parts)
            value = _value(b"".join(parts), kind)
        except TimeoutError:
            text = f"the body did not arrive within {RECEIVE_SECONDS:.0f} s"
            raise Problem(408, text, code="slow_sender") from None
        except ClientDisconnect:
            raise ClientGone from None
        finally:
            self.held -= sum(map(len, parts))
        await asyncio.sleep(0)  # both steps take long for a body of many parts: other requests get a turn between them
        check(value)
        return value

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > MOST_BYTES:
                raise too_large()
            if self.held + len(part) > MOST_TOGETHER:
                text = "too many requests are arriving at once; try again"
                raise Problem(503, text, code="too_many_bodies", retry_after=1.0)
            self.held += len(part)
            parts.append(part)


def _value(body: bytes, kind: type[ParametersT]) -> ParametersT:
    if _has_too_many_parts(body):
        text = f"the body has more than {MOST_PARTS:,} texts, lists and objects, names of fields included"
        raise Problem(413, text, code="request_too_large")
    return kind.model_validate_json(body)


def _has_too_many_parts(body: bytes) -> bool:
    """Return whether a body has more than MOST_PARTS parts. Takes hundredths of a second for any body."""
    # Brackets and quotes within texts count here as well: most bodies have few enough even so.
    if body.count(b'"') // 2 + body.count(b"{") + body.count(b"[") <= MOST_PARTS:
        return False
    # Without escapes, each quote begins or ends a text, so that every second piece is outside of texts.
    pieces = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 2 * MOST_PARTS + 1)
    outside = b"".join(pieces[::2])
    return len(pieces) // 2 + outside.count(b"{") + outside.count(b"[") > MOST_PARTS


_bodies = Bodies()


async def read_body(request: Request, kind: type[ParametersT]) -> ParametersT:
    """Return the body of a request, see `Bodies.read`; the memory limit is that of the process."""
    return await _bodies.read(request, kind)

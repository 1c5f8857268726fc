"""Measures the link to a rank: how long a message takes there and back, and how many bytes pass in a second."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from dataclasses import dataclass

from daemon.server.group.handshake import GroupError, reach, unreached

PROBE_SECONDS = 30.0
"""Most time for one measurement."""

_LENGTH_BYTES = 8
_PINGS = 100
_PIECE = 1 << 20
_PIECES = 64


@dataclass(frozen=True, slots=True)
class Link:
    """
    A link to a rank.

    Attributes:
        versions: Versions of its software.
        round_trip: Seconds of half of the round trips of a small message, at most.
        bytes_per_second: Bytes that reached it in a second.
    """

    versions: list[str]
    round_trip: float
    bytes_per_second: float


async def measure(address: str, key: bytes) -> Link:
    """
    Measure the link to a rank. Its engine is not touched, and tensors may pass meanwhile.

    Raises:
        GroupError: If it cannot be reached, or has another key or other versions.
    """
    session = await reach(address, key, rank=0, ranks=0)
    with session.connection as connection, unreached():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(PROBE_SECONDS):
            pings = [await _timed(connection, b"\0") for _ in range(_PINGS)]
            piece = bytes(_PIECE)
            seconds = sum([await _timed(connection, piece) for _ in range(_PIECES)])
    return Link(list(session.greeting.versions), statistics.median(pings), _PIECE * _PIECES / seconds)


async def serve(connection: socket.socket) -> None:
    """Answer each message of a measurement with a byte, until the caller closes the connection."""
    loop = asyncio.get_running_loop()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        async with asyncio.timeout(PROBE_SECONDS):
            while head := await _exactly(connection, _LENGTH_BYTES):
                if not await _exactly(connection, min(int.from_bytes(head, "big"), _PIECE)):
                    return
                await loop.sock_sendall(connection, b"\1")


async def _timed(connection: socket.socket, message: bytes) -> float:
    began = time.perf_counter()
    await asyncio.get_running_loop().sock_sendall(connection, len(message).to_bytes(_LENGTH_BYTES, "big") + message)
    if not await _exactly(connection, 1):
        raise GroupError("closed the connection")
    return time.perf_counter() - began


async def _exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes; nothing at the end of the connection."""
    data = bytearray()
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)

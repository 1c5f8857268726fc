"""Measures the link to a rank, in seconds there and back and in bytes a second, and asks which models are there."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from daemon.cache.on_disk import OnDisk
from daemon.server.group import models as group_models
from daemon.server.group.handshake import GroupError, Session, reach, unreached
from daemon.shared.config import Config

PROBE_SECONDS = 30.0
"""Most time for one measurement."""

_LENGTH_BYTES = 8
_END = bytes(_LENGTH_BYTES)
"""The length of no message: the measurement has ended."""
_PINGS = 100
_PIECE = 1 << 20
_PIECES = 64


@dataclass(frozen=True, slots=True)
class Link:
    """
    A link to a rank. What could not be measured is None.

    Attributes:
        versions: Versions of its software.
        round_trip: Seconds of half of the round trips of a small message, at most.
        bytes_per_second: Bytes that reached it in a second.
        models: What it has of the models that were asked for, in their order; None if it could not look.
        problem: Why something is not known; empty if all is.
    """

    versions: list[str] = field(default_factory=list)
    round_trip: float | None = None
    bytes_per_second: float | None = None
    models: list[OnDisk] | None = None
    problem: str = ""


async def measure(address: str, key: bytes, models: Sequence[str]) -> Link:
    """
    Measure the link to a rank, then ask it for models. Its engine is not touched, and tensors may pass meanwhile.

    A rank that cannot be reached, or has another key or other versions, is a problem of the link.
    """
    try:
        return await _measured(await reach(address, key, rank=0, ranks=0), models)
    except GroupError as error:
        return Link(problem=str(error))


async def _measured(session: Session, models: Sequence[str]) -> Link:
    with session.connection as connection, unreached():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(PROBE_SECONDS):
            pings = [await _timed(connection, b"\0") for _ in range(_PINGS)]
            piece = bytes(_PIECE)
            seconds = sum([await _timed(connection, piece) for _ in range(_PIECES)])
            await asyncio.get_running_loop().sock_sendall(connection, _END)
        figures = list(session.greeting.versions), statistics.median(pings), _PIECE * _PIECES / seconds
        try:
            return Link(*figures, await group_models.ask(session, models))
        except GroupError as error:
            return Link(*figures, problem=str(error))


async def serve(session: Session, config: Config) -> None:
    """
    Answer each message of a measurement with a byte, then the question for models.

    Raises:
        OSError: If the connection fails, or the caller is too slow.
    """
    loop, connection = asyncio.get_running_loop(), session.connection
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # macOS refuses this once the caller is gone
        async with asyncio.timeout(PROBE_SECONDS):
            while (head := await _exactly(connection, _LENGTH_BYTES)) != _END:
                if not head or not await _exactly(connection, min(int.from_bytes(head, "big"), _PIECE)):
                    return
                await loop.sock_sendall(connection, b"\1")
        await group_models.answer(session, config)


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

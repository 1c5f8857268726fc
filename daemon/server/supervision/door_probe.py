"""
Checks that the HTTP door answers: it sends a HEAD request over the socket that clients use.

A door that hangs still has its process and its socket: clients connect, and wait without end. Any answer is a sign of
life, also a refusal. The time without one counts only while this process runs, see `observed_time.py`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

from daemon.shared import observed_time

PAUSE_SECONDS = 10.0
"""Time from a start, and from an answer, to the next look."""
SILENT_SECONDS = 30.0
"""Longest time without an answer. The door does no long work: it waits for the daemon without standing still."""
AGAIN_SECONDS = 1.0
"""Time between two connections that failed; the socket's queue may be full."""
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS))
"""Errors of a connection that tell nothing of the door: this process, or the machine, has run out of something."""
_REQUEST = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""The one request that needs no token on a port."""


async def until_silent(address: str, answered: Callable[[], None]) -> None:
    """
    Return when the door has given no answer for too long.

    Args:
        address: Where it listens: a path, or "127.0.0.1:PORT".
        answered: Called after each answer.
    """
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        look = asyncio.ensure_future(_until_answered(address))
        try:
            if not await observed_time.wait({look}, SILENT_SECONDS):
                return
        finally:
            look.cancel()
        answered()


async def _until_answered(address: str) -> None:
    while not await _answers(address):  # noqa: ASYNC110 - no event tells it
        await asyncio.sleep(AGAIN_SECONDS)


async def _answers(address: str) -> bool:
    """Tell whether a request gets an answer, as far as it can be made. One that gets none waits."""
    try:
        reader, writer = await _connect(address)
        try:
            writer.write(_REQUEST)
            return (await reader.read(64)).startswith(b"HTTP/1.1 ")
        finally:
            writer.close()
    except OSError as error:
        return error.errno in _OURS


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))

"""Writes to the parent: at once on the thread that has something to say, as long as the socket takes it."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading

_FULL = (errno.EAGAIN, errno.ENOBUFS)


class FrameWriter:
    """
    Writes whole frames in order, from any thread, and never blocks: what the socket does not take waits for the loop.

    A thread that only writes would have to be woken for every step, and would take the interpreter lock in its middle.

    Args:
        sock: A socket that does not block. It is duplicated: asyncio wants a descriptor that it reads for itself.
        loop: Runs on another thread, and goes on where the socket was full.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock.dup()
        self._loop = loop
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._gone = False
        """Whether nobody reads any more; a frame may have been torn."""
        self._empty = threading.Event()
        self._empty.set()

    def write(self, frames: bytes) -> None:
        """Write frames, or let them wait for those before them; dropped once the other end is gone."""
        with self._lock:
            waits = bool(self._backlog)
            self._backlog += frames if waits else frames[self._sent(frames) :]
            if waits or not self._backlog:
                return
            self._empty.clear()
        self._loop.call_soon_threadsafe(self._loop.add_writer, self._sock, self._go_on)

    @property
    def behind(self) -> bool:
        """Whether frames wait because the other end does not read them; any thread."""
        return not self._empty.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is left to write, for at most so long, and tell whether that is so."""
        return self._empty.wait(seconds)

    def close(self) -> None:
        """Close its descriptor; the loop must not run any more."""
        self._sock.close()

    def _go_on(self) -> None:
        with self._lock:
            del self._backlog[: self._sent(self._backlog)]
            if self._backlog:
                return
            self._loop.remove_writer(self._sock)
            self._empty.set()

    def _sent(self, data: bytes | bytearray) -> int:
        if self._gone:
            return len(data)
        try:
            return self._sock.send(data)
        except OSError as error:
            if error.errno in _FULL:
                return 0
            self._gone = True
            return len(data)

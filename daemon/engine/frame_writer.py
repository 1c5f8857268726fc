"""Writes frames to the parent from any thread and never blocks; the link thread writes what the socket refused."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading

_FULL = (errno.EAGAIN, errno.ENOBUFS)


class FrameWriter:
    """
    Writes whole frames in order, from any thread, and never blocks. If the socket is full, the rest waits for the loop.

    A thread that only writes would have to be woken at every step, and would take the interpreter lock in the middle of
    it.

    Args:
        sock: A socket that does not block. It is duplicated: asyncio needs the descriptor that it reads for itself.
        loop: Runs on another thread, and writes the rest when the socket was full.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock.dup()
        self._loop = loop
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._gone = False
        """Whether the other end is gone; the last frame may have been cut off."""
        self._empty = threading.Event()
        self._empty.set()

    def write(self, frames: bytes) -> None:
        """Write frames, after those that still wait; they are dropped once the other end is gone."""
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
        """Wait for at most so many seconds until no bytes are left to write, and tell whether none are."""
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

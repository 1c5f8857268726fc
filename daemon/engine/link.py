"""The engine's end of the socket pair: reads commands, writes event frames, and sends a heartbeat."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable

from daemon.shared import observed_time
from daemon.shared.durations import duration
from daemon.shared.frames import FrameError, encode_frame, read_frame
from daemon.v1 import ipc_pb2 as ipc

HEARTBEAT_SECONDS = 1.0
EXIT_SECONDS = 1.5
"""After the end was called for, the MLX thread has this long to end its step before the process ends without it."""


class Link:
    """
    Carries frames between the parent and the MLX thread.

    Args:
        sock: This process's end of the socket pair.
        on_command: Takes a command; runs on the link's thread and must not block.
        on_end: Called once, when the parent is gone or has asked for the end.
        pulse: Returns steps done, the age of the current step in seconds, if any, and how many threads hang.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_command: Callable[[ipc.Command], None],
        on_end: Callable[[], None],
        pulse: Callable[[], tuple[int, float | None, int]],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._on_command = on_command
        self._on_end = on_end
        self._pulse = pulse
        self._loop = asyncio.new_event_loop()
        self._writer = FrameWriter(sock, self._loop)
        self._unwritten: list[bytes] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), name="link")
        self._thread.daemon = True

    def start(self, hello: ipc.Event) -> None:
        """Begin to read and write; `hello` is the first frame."""
        self._writer.write(encode_frame(hello))
        self._thread.start()

    def send(self, event: ipc.Event) -> None:
        """Queue an event for the next `flush`; any thread."""
        frame = encode_frame(event)
        with self._lock:
            self._unwritten.append(frame)

    def flush(self) -> None:
        """Write the queued frames, in order; never blocks, any thread."""
        with self._lock:  # held while writing: frames that another thread takes later must follow these
            frames = b"".join(self._unwritten)
            self._unwritten.clear()
            if frames:
                self._writer.write(frames)

    @property
    def behind(self) -> bool:
        """Whether frames wait because the parent does not read them; any thread."""
        return self._writer.behind

    def drain(self, seconds: float) -> None:
        """Wait until all flushed frames are written, for at most so many seconds."""
        if self._thread.is_alive():
            self._writer.wait(seconds)

    async def _run(self) -> None:
        # The writer is kept: if it were collected, the connection would close.
        reader, _writer = await asyncio.open_connection(sock=self._sock)
        beats = asyncio.create_task(self._beat())
        status = 0
        try:
            await self._listen(reader)
        except FrameError:
            status = 1
        beats.cancel()
        self._on_end()
        await observed_time.sleep(EXIT_SECONDS)
        os._exit(status)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (command := await read_frame(reader, ipc.Command)) is not None:
            if command.HasField("shutdown"):
                return
            self._on_command(command)

    async def _beat(self) -> None:
        while True:
            steps, age, stuck = self._pulse()
            beat = ipc.Heartbeat(steps=steps, step_age=None if age is None else duration(age), stuck=stuck)
            self._writer.write(encode_frame(ipc.Event(heartbeat=beat)))
            await asyncio.sleep(HEARTBEAT_SECONDS)


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

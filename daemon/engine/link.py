"""The engine's end of the socket pair: one thread that reads commands, writes events and sends heartbeats."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress

from daemon.durations import duration
from daemon.ipc import FrameError, encode_frame, read_frame
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
        on_end: Called once when the parent is gone or asked for the end.
        pulse: Returns steps done and the age of the current step in seconds, if any.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_command: Callable[[ipc.Command], None],
        on_end: Callable[[], None],
        pulse: Callable[[], tuple[int, float | None]],
    ) -> None:
        self._sock = sock
        self._on_command = on_command
        self._on_end = on_end
        self._pulse = pulse
        self._loop = asyncio.new_event_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._hello = b""
        self._unwritten: deque[bytes] = deque()
        self._woken = False
        """Whether the thread will look for what is unwritten. A step sends many frames; one wake-up does for all."""
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], name="link")
        self._thread.daemon = True

    def start(self, hello: ipc.Event) -> None:
        """Begin to read and write; `hello` is the first frame."""
        self._hello = encode_frame(hello)
        self._thread.start()
        self._connected.wait()

    def send(self, event: ipc.Event) -> None:
        """Queue an event; never blocks, any thread, dropped once the parent is gone."""
        self._unwritten.append(encode_frame(event))
        if self._woken:
            return
        self._woken = True
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._write_all)

    def flush(self, seconds: float) -> None:
        """Wait until what was sent so far is written, for at most so long."""
        writer = self._writer
        if writer is not None and self._thread.is_alive():
            drained = asyncio.run_coroutine_threadsafe(self._drain(writer), self._loop)
            with suppress(TimeoutError, CancelledError):
                drained.exception(timeout=seconds)

    async def _run(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        self._writer.write(self._hello)
        self._connected.set()
        beats = asyncio.create_task(self._beat())
        status = 0
        try:
            await self._listen(reader)
        except FrameError:
            status = 1
        beats.cancel()
        self._on_end()
        await asyncio.sleep(EXIT_SECONDS)
        os._exit(status)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (command := await read_frame(reader, ipc.Command)) is not None:
            if command.HasField("shutdown"):
                return
            self._on_command(command)

    async def _beat(self) -> None:
        while True:
            steps, age = self._pulse()
            beat = ipc.Heartbeat(steps=steps, step_age=None if age is None else duration(age))
            self._write(encode_frame(ipc.Event(heartbeat=beat)))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    def _write_all(self) -> None:
        self._woken = False  # first: what is sent from here on wakes the thread again
        frames = b"".join(self._unwritten.popleft() for _ in range(len(self._unwritten)))
        self._write(frames)

    def _write(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)
        self._write_all()
        writer.transport.set_write_buffer_limits(high=0)
        await writer.drain()

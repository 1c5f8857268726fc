"""
The loop of the MLX thread, and the link thread that brings it the parent's commands.

    parent ──frames──> Link, its thread ──command──> Loop, the MLX thread ──> Engine.handle, then Engine.step
       ↑                    │ heartbeat, what the socket refused                    │ events
       └────────────────────┴─────────────────── FrameWriter <──────────────────────┘

The loop runs what other threads posted, then one step, and measures how long a step runs. The MLX thread writes its
events itself, so that no other thread has to wake up between a token and the parent.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

from daemon.engine.frame_writer import FrameWriter
from daemon.shared import observed_time
from daemon.shared.durations import duration
from daemon.shared.frames import FrameError, encode_frame, read_frame
from daemon.v1 import ipc_pb2 as ipc

HEARTBEAT_SECONDS = 1.0
EXIT_SECONDS = 1.5
"""After the end was called for, the MLX thread has this long to end its step before the process ends without it."""


class Steps(Protocol):
    """The work that the loop drives, in steps."""

    def handle(self, command: Any) -> None:
        """Begin or end a piece of work, between two steps."""

    @property
    def pause(self) -> float:
        """Seconds for which a step can wait for posted functions; 0 if it has something to do at once."""

    @property
    def busy(self) -> bool:
        """Whether there is work, now or after a pause."""

    def step(self) -> None:
        """Do one step."""


class Loop:
    """
    Runs functions that other threads post, and steps while there is work.

    Args:
        clock: Seconds that never go back.
        on_idle: Called when no function came during a pause and there is no work.

    Attributes:
        steps: Steps done so far; the heartbeat shows that it grows.
    """

    def __init__(self, clock: Callable[[], float], on_idle: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._on_idle = on_idle
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._work: Steps
        self._stopping = False
        self._step_began: float | None = None
        self.steps = 0

    def post(self, action: Callable[[], None]) -> None:
        """Run a function on the loop's thread, before its next step; any thread may call this."""
        self._inbox.put(action)

    def command(self, command: Any) -> None:
        """Give a command to the work that `run` drives, before its next step; any thread may call this."""
        self.post(lambda: self._work.handle(command))

    def stop(self) -> None:
        """End `run` after the current step; any thread may call this."""
        self.post(self._stop)

    @property
    def step_age(self) -> float | None:
        """Seconds since the current step began; None when idle. Any thread may ask."""
        # The clock is read also when idle: `SeenTime` counts only the time between two looks at it.
        began, now = self._step_began, self._clock()
        return None if began is None else max(0.0, now - began)

    def run(self, engine: Steps) -> None:
        """Run until `stop`. An exception of a step passes through: its state cannot be trusted."""
        self._work = engine
        while not self._stopping:
            pause = engine.pause
            try:
                action = self._inbox.get(timeout=pause) if pause else self._inbox.get_nowait()
                while True:
                    self._step_began = self._clock()  # a function that hangs counts as a step that hangs
                    action()
                    action = self._inbox.get_nowait()
            except queue.Empty:
                waited_in_vain = pause > 0 and self._step_began is None
            if waited_in_vain and not engine.busy:
                self._on_idle()
            self._step_began = self._clock()
            engine.step()
            self.steps += 1
            self._step_began = None

    def _stop(self) -> None:
        self._stopping = True


class Link:
    """
    The link thread: gives the parent's commands to the loop, sends heartbeats, and writes the frames of other threads.

    It stops the loop once the parent is gone or has asked for the end, and ends the process a moment later.

    Args:
        sock: This process's end of the socket pair.
        loop: The loop of the MLX thread.
        stuck: Returns how many threads hang.
    """

    def __init__(self, sock: socket.socket, loop: Loop, stuck: Callable[[], int]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._stuck = stuck
        self._event_loop = asyncio.new_event_loop()
        self._writer = FrameWriter(sock, self._event_loop)
        self._unwritten: list[bytes] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=lambda: self._event_loop.run_until_complete(self._run()), name="link")
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
        self._loop.stop()
        await observed_time.sleep(EXIT_SECONDS)
        os._exit(status)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (command := await read_frame(reader, ipc.Command)) is not None:
            if command.HasField("shutdown"):
                return
            self._loop.command(command)

    async def _beat(self) -> None:
        while True:
            age, stuck = self._loop.step_age, self._stuck()
            beat = ipc.Heartbeat(steps=self._loop.steps, step_age=None if age is None else duration(age), stuck=stuck)
            self._writer.write(encode_frame(ipc.Event(heartbeat=beat)))
            await asyncio.sleep(HEARTBEAT_SECONDS)

"""
Keeps the process that serves HTTP running, where the configuration asks for it: starts it, and starts it again.

    OFF          http_listen is empty
    STARTING --> SERVING        it says that it answers
       ^            |
       |            v
       +------ RESTARTING       it has ended, or cannot listen; the back-off doubles up to a minute

A door that answers nothing for half a minute is killed, see `door_probe.py`; then the same happens.

This process holds the listening socket and hands a copy on. So clients that connect while the door is started anew wait
in the socket's queue, and get their answer. A Unix socket that was removed is made anew with the next start. The
door holds one end of a pipe as its standard input: it ends with this process, whatever ends that.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum

import structlog

from daemon.server.http_listener import Listener, default_path, listen
from daemon.server.supervision import door_probe
from daemon.server.supervision.engine_process import LINE_BYTES, due, repeated
from daemon.server.supervision.spawning import spawned
from daemon.server.supervision.start_log import StartLog
from daemon.shared import observed_time
from daemon.shared.config import Config
from daemon.shared.log_fields import cause
from daemon.shared.log_frames import output_line
from mlx_sidecar.v1 import sidecar_pb2 as pb

FIRST_BACKOFF = 1.0
LAST_BACKOFF = 60.0
"""Seconds between an end and the next start: the first, doubled with each end up to the last."""
STABLE_SECONDS = 60.0
"""After a life of this length the back-off begins at the first again."""
STOP_SECONDS = 8.0
"""Time of the door to end its answers and exit; then it is killed."""
SERVING = "http_serving"
"""The event that the door logs when it answers."""

log = structlog.get_logger()


class DoorState(Enum):
    """State of the door; see above. Values are those of the API."""

    OFF = pb.HTTP_STATE_OFF
    STARTING = pb.HTTP_STATE_STARTING
    SERVING = pb.HTTP_STATE_SERVING
    RESTARTING = pb.HTTP_STATE_RESTARTING


def door_command(config: Config) -> list[str]:
    """Return the command line of the real door; `--fd N` is added to it."""
    return [sys.executable, "-P", "-m", "daemon.http", "--config", config.to_json()]


class HttpDoor:
    """
    Owns the door's process. All methods run on the event loop.

    Args:
        config: Where to listen.
        clock: Seconds that never go back.
        command: Command line of the door, without `--fd`; None for the real one.

    Attributes:
        state: Its state.
        restarts: Starts after the first.
        address: Where it listens; empty while it does not.
    """

    def __init__(self, config: Config, clock: Callable[[], float], command: Sequence[str] | None = None) -> None:
        self.state = DoorState.OFF
        self.restarts = 0
        self.address = ""
        self._config = config
        self._clock = clock
        self._command = command or door_command(config)
        self._listener: Listener | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._starts = StartLog(clock)

    @property
    def pid(self) -> int:
        """Process id of the door; 0 while none runs."""
        return self._process.pid if self._process else 0

    def stats(self) -> pb.HttpStats:
        """Return its state as the API shows it."""
        return pb.HttpStats(state=self.state.value, address=self.address, pid=self.pid, restarts=self.restarts)

    def start(self) -> None:
        """Begin to keep a door running, if the configuration asks for one. The daemon's socket must be published."""
        if self._config.http_listen:
            self.state = DoorState.STARTING
            self._task = asyncio.create_task(self._run(), name="http-door")

    async def stop(self) -> None:
        """End the door for good. Harmless twice."""
        self.state = DoorState.OFF
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            if self._task is not None and not await observed_time.wait({self._task}, STOP_SECONDS):
                self._kill()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._close()

    async def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            began = self._clock()
            status = await self._live()
            if self.state is DoorState.OFF:
                return
            self.state = DoorState.RESTARTING
            lived = self._clock() - began
            backoff = FIRST_BACKOFF if lived >= STABLE_SECONDS else backoff
            if status is not None and (starts := self._starts.ended(status)):
                log.error("http_ended", status=status, lived_s=round(lived, 3), retry_in_s=backoff, starts=starts)
            await asyncio.sleep(backoff)
            backoff = min(LAST_BACKOFF, 2 * backoff)
            self.restarts += 1
            self.state = DoorState.STARTING

    async def _live(self) -> int | None:
        """Run one door from its start to its end, and return its exit status; None if it could not start."""
        self._starts.begin()
        try:
            self._process = await self._spawn()
        except Exception as error:  # also of a library, or of a thread that cannot be started: the next try may do
            if starts := self._starts.ended(cause(error)):
                log.error("http_start_failed", error=cause(error), starts=starts, **self._place())
            return None
        watch = asyncio.create_task(self._kill_if_silent(), name="http-door-probe")
        try:
            await self._follow(self._process)
            return await self._process.wait()
        except asyncio.CancelledError:
            self._kill()
            await self._process.wait()
            raise
        finally:
            watch.cancel()
            self._process = None

    def _place(self) -> dict[str, str]:
        """Return the log field with the place where it is to listen."""
        where = self._config.http_listen
        return {"socket": str(default_path(self._config.socket))} if where == "unix" else {"address": where}

    async def _kill_if_silent(self) -> None:
        await door_probe.until_silent(self.address, self._serves)
        if starts := self._starts.hangs():
            log.error("http_hung", limit_s=door_probe.SILENT_SECONDS, starts=starts)
        self._kill()

    async def _spawn(self) -> asyncio.subprocess.Process:
        if self._listener is not None and not self._listener.is_there():
            self._close()
        if self._listener is None:
            self._listener = listen(self._config.http_listen, self._config.socket)
            self.address = self._listener.address
        # Descriptors are inherited by their own flag, as those of the engine are: see engine_process.py.
        copy = os.dup(self._listener.socket.fileno())
        try:
            os.set_inheritable(copy, True)
            return await spawned(
                asyncio.create_subprocess_exec(
                    *self._command,
                    "--fd",
                    str(copy),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    close_fds=False,
                    limit=LINE_BYTES,
                )
            )
        finally:
            os.close(copy)

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Repeat the door's output in our log, until it ends. Only this process may write the log file."""
        assert process.stdout is not None
        while True:
            try:
                line = (await process.stdout.readline()).decode("utf-8", "replace")
            except ValueError:
                continue  # the line is too long; readline has dropped it
            if not line:
                return
            self._note(line.rstrip())

    def _note(self, line: str) -> None:
        event = repeated(line, "http", self._starts)
        if event is None and line and due(self._starts, line):
            log.warning("http_output", characters=len(line), line=output_line(line))
        elif event == SERVING and self.state is DoorState.STARTING:
            self.state = DoorState.SERVING
            self._serves()

    def _serves(self) -> None:
        """Note that the door answers; after starts that failed, the log says so."""
        if failed := self._starts.serves():
            log.info("http_starts_again", starts=failed)

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.address = ""

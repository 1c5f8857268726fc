"""One engine process: spawned as a fresh interpreter, connected by a socket pair, killed or stopped, and reaped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from daemon.server.supervision.spawning import spawned
from daemon.server.supervision.start_log import StartLog
from daemon.shared import observed_time
from daemon.shared.frames import FrameError, encode_frame, read_frame
from daemon.shared.log_fields import Words, cause
from daemon.shared.log_frames import output_line
from daemon.v1 import ipc_pb2 as ipc

LINE_BYTES = 1 << 20
"""Longest line of its output; a longer line is dropped."""
SHOWN_CHARACTERS = 2000
"""Characters of an output line that is no log line, shown only while the engine has got no request."""
REAP_SECONDS = 2.0
"""Time of an engine that has closed its socket to exit; then it is killed."""
SOCKET_BYTES = 128 << 10
"""Room for frames that were not read yet, each way. macOS gives a socket 8 KiB, and each step may write more."""

_WITHOUT_WORDS = frozenset(("cancel", "hold", "shutdown", "recall", "list_models"))
"""Kinds of commands with no words of a request. Any other can have a prompt, and so one that is new."""
_WORDS = ("error", "exception")
"""Fields with free text. The engine has checked them before they became JSON."""
_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}

log = structlog.get_logger()


def engine_command(config_json: str) -> list[str]:
    """Return the command line of the real engine; `--fd N` is added to it."""
    # -P keeps the working directory off the module path: a folder named "daemon" there must not win.
    return [sys.executable, "-P", "-m", "daemon.engine", "--config", config_json]


class EngineProcess:
    """
    A running engine.

    Args:
        process: The child process.
        reader, writer: The parent's end of the socket pair.
        starts: Decides which lines of its output are logged; None logs all.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        starts: StartLog | None = None,
    ) -> None:
        self._starts = starts
        self._process = process
        self._reader = reader
        self._writer = writer
        self._knows_requests = False
        """Whether it has got a request. From then on its output may quote a prompt."""
        self._output = asyncio.create_task(self._forward_output())

    @classmethod
    async def spawn(cls, command: Sequence[str], starts: StartLog | None = None) -> EngineProcess:
        """
        Start an engine.

        Descriptors are inherited by their own flag (`close_fds=False`). That lets Python use posix_spawn; a fork of a
        process that runs gRPC can hang.

        Raises:
            OSError: If the process cannot be started.
        """
        ours, theirs = roomy_pair()
        with ours, theirs:
            os.set_inheritable(theirs.fileno(), True)
            process = await spawned(
                asyncio.create_subprocess_exec(
                    *command,
                    "--fd",
                    str(theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    close_fds=False,
                    limit=LINE_BYTES,
                )
            )
            try:
                reader, writer = await asyncio.open_connection(sock=ours.dup())
            except BaseException:
                process.kill()
                raise
        return cls(process, reader, writer, starts)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, command: ipc.Command) -> None:
        """Queue a command. A command for a dead engine is dropped."""
        self._knows_requests |= command.WhichOneof("body") not in _WITHOUT_WORDS
        if not self._writer.is_closing():
            self._writer.write(encode_frame(command))

    def redact(self) -> None:
        """Log no words of its output from now on: it gets requests in another way than by `send`."""
        self._knows_requests = True

    async def listen(self, on_event: Callable[[ipc.Event], None]) -> None:
        """Call `on_event` with each event until the engine closes its socket. Garbage gets the engine killed."""
        try:
            while (event := await read_frame(self._reader, ipc.Event)) is not None:
                on_event(event)
        except FrameError as error:
            log.error("engine_frame_invalid", error=cause(error))
            self.kill()

    def kill(self) -> None:
        """Kill it. Its memory is free only after `reap`."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def reap(self) -> int:
        """
        Wait for the end of an engine that has closed its socket, and free what belongs to it.

        Returns:
            Its exit status, negative for a signal.
        """
        status = await self._wait(REAP_SECONDS)
        await observed_time.wait({self._output}, REAP_SECONDS)
        self._output.cancel()
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        return status

    async def stop(self, seconds: float) -> int:
        """Ask it to exit, kill it after so many seconds, and return its exit status."""
        self.send(ipc.Command(shutdown=ipc.Shutdown()))
        return await self._wait(seconds)

    async def _wait(self, seconds: float) -> int:
        end = asyncio.ensure_future(self._process.wait())
        try:
            if not await observed_time.wait({end}, seconds):
                log.warning("engine_shutdown_timeout", seconds=seconds)
                self.kill()
            return await end
        finally:
            end.cancel()

    async def _forward_output(self) -> None:
        """Repeat its output in our log. Only this process may write the log file."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # the line is too long; readline has dropped it
            if not line:
                return
            self._repeat(line.decode("utf-8", "replace").rstrip())

    def _repeat(self, line: str) -> None:
        """Log a line of its output. This never raises: if reading ended, the engine would block on a full pipe."""
        if repeated(line, "engine", self._starts) is None and line and due(self._starts, line):
            shown = output_line(line) if self._knows_requests else Words(line[:SHOWN_CHARACTERS])
            log.warning("engine_output", characters=len(line), **({} if shown is None else {"line": shown}))


def roomy_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, each with room for SOCKET_BYTES at least, as far as the system allows."""
    pair = socket.socketpair()
    for end in pair:
        for room in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            if end.getsockopt(socket.SOL_SOCKET, room) < SOCKET_BYTES:
                with suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, room, SOCKET_BYTES)
    return pair


def repeated(line: str, process: str, starts: StartLog | None = None) -> str | None:
    """Log a line if it is a log line of a child process and due, and return its event; None if it is none."""
    try:
        record = json.loads(line)
        level = _LEVELS[record.pop("level")]
        event = str(record.pop("event"))
        record.pop("timestamp", None)
        told = event + "".join(str(record.get(name, "")) for name in _WORDS)
        if not due(starts, told):
            return event
        words = {name: Words(record[name]) for name in _WORDS if isinstance(record.get(name), str)}
        log.log(level, event, **{**record, **words, "process": process})
    except Exception:
        return None
    return event


def due(starts: StartLog | None, line: str) -> bool:
    """Return whether a line of a child process is to be logged."""
    return starts is None or bool(starts.due(line))

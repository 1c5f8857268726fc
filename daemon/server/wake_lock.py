"""Sleep: a Mac that answers must not doze off in the middle. Held only while there is work; the display may go dark."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import structlog

from daemon.shared.log_fields import cause

LINGER_SECONDS = 5.0
"""Kept for so long after the last call: an agent that calls again and again starts one process, not hundreds."""

CAFFEINATE = Path("/usr/bin/caffeinate")

log = structlog.get_logger()


class WakeLock(Protocol):
    """Keeps the machine from idle sleep. Both methods may be repeated, never raise and never wait."""

    def take(self) -> None:
        """Keep it awake from now on."""

    def release(self) -> None:
        """Let it sleep again."""


class NoWakeLock:
    """Where nothing has to be done: a server does not doze off."""

    def take(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


class Caffeinate:
    """
    A `caffeinate -i` that is tied to this process: it ends with it, however that ends.

    Args:
        program: Where it is.
    """

    def __init__(self, program: Path = CAFFEINATE) -> None:
        self._program = program
        self._pid = 0
        self._told = False

    def take(self) -> None:
        """Start it, unless it runs. A Mac without it is told of once, and may sleep."""
        if self._runs():
            return
        try:
            self._pid = _spawn(str(self._program), "-i", "-w", str(os.getpid()))
        except OSError as error:
            if not self._told:
                log.warning("the machine may sleep during long answers", program=str(self._program), error=cause(error))
            self._told = True

    def release(self) -> None:
        """End it. It has nothing to save, and the system drops what it held."""
        if self._runs():
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _runs(self) -> bool:
        if self._pid and os.waitpid(self._pid, os.WNOHANG)[0]:
            self._pid = 0
        return bool(self._pid)


def system_wake_lock(platform: str = sys.platform) -> WakeLock:
    """Return the wake lock of this operating system."""
    return Caffeinate() if platform == "darwin" else NoWakeLock()


class Wakefulness:
    """
    Holds the lock while there is work, and a little longer.

    Args:
        lock: The lock.
        later: Runs a function after so many seconds, and returns what has a `cancel`.
    """

    def __init__(self, lock: WakeLock, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._lock = lock
        self._later = later
        self._end: Any = None

    def busy(self) -> None:
        """Work begins."""
        self._cancel()
        self._lock.take()

    def idle(self) -> None:
        """The last work has ended."""
        self._cancel()
        self._end = self._later(LINGER_SECONDS, self._lock.release)

    def close(self) -> None:
        """Release it at once, for good."""
        self._cancel()
        self._lock.release()

    def _cancel(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


def _spawn(program: str, *arguments: str) -> int:
    """
    Start a program without input and output, and return its process id.

    It inherits no descriptor: one end of the engine's socket in its hands would hide the engine's death from us, and
    the lock would outlive us. Not `subprocess` with `close_fds`, which forks on macOS, and this process runs gRPC.
    """
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    shut = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    return os.posix_spawn(program, [program, *arguments], os.environ, file_actions=[*silent, *shut])


def _inheritable() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the listing's own is gone again
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found

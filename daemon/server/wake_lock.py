"""Keeps a Mac awake while calls run, or a group that it is a rank of, by `caffeinate -i`. Its display may go dark."""

from __future__ import annotations

import errno
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
"""The lock is kept so long after the last call: an agent's many calls start one process, not hundreds."""

CAFFEINATE = Path("/usr/bin/caffeinate")

log = structlog.get_logger()


class WakeLock(Protocol):
    """A lock that keeps the machine from idle sleep. Both methods may be repeated; they never raise and never wait."""

    def take(self) -> None:
        """Keep the machine awake from now on."""

    def release(self) -> None:
        """Let the machine sleep again."""


class NoWakeLock:
    """A lock that does nothing, for systems that do not sleep by themselves."""

    def take(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


class Caffeinate:
    """
    A process `caffeinate -i -w <our process id>`, which ends when this process ends, for whatever reason.

    Args:
        program: Path of caffeinate.
    """

    def __init__(self, program: Path = CAFFEINATE) -> None:
        self._program = program
        self._pid = 0
        self._told = False

    def take(self) -> None:
        """Start caffeinate, unless it runs. If it cannot be started, that is logged once and the machine may sleep."""
        if self._runs():
            return
        try:
            self._pid = _spawn(str(self._program), "-i", "-w", str(os.getpid()))
        except OSError as error:
            if not self._told:
                log.warning("wake_lock_unavailable", program=str(self._program), error=cause(error))
            self._told = True

    def release(self) -> None:
        """Kill caffeinate. It has nothing to save, and the system drops its lock."""
        if self._runs():
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            _has_ended(self._pid, 0)
            self._pid = 0

    def _runs(self) -> bool:
        if self._pid and _has_ended(self._pid, os.WNOHANG):
            self._pid = 0
        return bool(self._pid)


def _has_ended(pid: int, options: int) -> bool:
    """Reap a child as `os.waitpid` does, and return whether it has ended. A child that was reaped before has."""
    try:
        return os.waitpid(pid, options)[0] != 0
    except ChildProcessError:
        return True


def system_wake_lock(platform: str = sys.platform) -> WakeLock:
    """Return the wake lock of this operating system."""
    return Caffeinate() if platform == "darwin" else NoWakeLock()


class Wakefulness:
    """
    Holds a wake lock while calls run, and LINGER_SECONDS longer.

    Args:
        lock: The wake lock.
        later: Runs a function after so many seconds, and returns a handle with `cancel`.
    """

    def __init__(self, lock: WakeLock, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._lock = lock
        self._later = later
        self._end: Any = None

    def busy(self) -> None:
        """Take the lock: a first call began."""
        self._cancel()
        self._lock.take()

    def idle(self) -> None:
        """Release the lock soon: the last call has ended."""
        self._cancel()
        self._end = self._later(LINGER_SECONDS, self._lock.release)

    def close(self) -> None:
        """Release the lock at once, for good."""
        self._cancel()
        self._lock.release()

    def _cancel(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None


def _spawn(program: str, *arguments: str, tries: int = 3) -> int:
    """
    Start a program without input and output, and return its process id.

    It inherits no descriptor. A copy of the engine's socket would hide the engine's death from us, and a copy of the
    instance lock would outlive us. `subprocess` with `close_fds` cannot be used: it forks on macOS, while gRPC runs.
    """
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    shut = [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()]
    try:
        return os.posix_spawn(program, [program, *arguments], os.environ, file_actions=[*silent, *shut])
    except OSError as error:
        # Another thread, of gRPC, has closed one of them meanwhile: macOS then starts nothing, where Linux goes on.
        if error.errno != errno.EBADF or tries == 1:
            raise
    return _spawn(program, *arguments, tries=tries - 1)


def _inheritable() -> list[int]:
    """Return the descriptors above 2 that a new process would inherit."""
    inheritable = []
    for fd in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # the descriptor of the listing itself is closed
            if fd > 2 and os.get_inheritable(fd):
                inheritable.append(fd)
    return inheritable

"""
Limits of time that count only what this process saw of it.

A process that was stopped (Ctrl-Z, a debugger, a frozen container) or that had no processor finds, when it runs again,
that the clock has jumped. The clock jumped for those that it watches too, and what they sent meanwhile is still unread.
So a watch never reads the clock once at the end: it looks often, and a look that comes late counts as one in time.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

LOOK_SECONDS = 0.25
"""How often those that wait here look up; so much is lost of a limit at most when the process is stopped once."""


class SeenTime:
    """
    A clock that counts only time in which it was read: between two readings at most so many seconds. Any thread.

    Args:
        clock: Seconds that never go back.
        most: Most seconds that count between two readings; it has to be read more often than that.
    """

    def __init__(self, clock: Callable[[], float], most: float) -> None:
        self._clock = clock
        self._most = most
        self._last = clock()
        self._seen = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the seconds that were seen so far."""
        with self._lock:
            self._read()
            return self._seen

    def late(self) -> bool:
        """Read the clock, and tell whether that came so late that time was left out."""
        with self._lock:
            return self._read() > self._most

    def _read(self) -> float:
        now = self._clock()
        passed, self._last = now - self._last, now
        self._seen += min(max(0.0, passed), self._most)
        return passed


def looks(seconds: float, each: float = LOOK_SECONDS) -> Iterator[float]:
    """Yield the pauses that make up a limit: each counts as it was asked for, however late it ends."""
    left = seconds
    while left > 0:
        pause = min(each, left)
        yield pause
        left -= pause


def polls(seconds: float, each: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Yield at once and after each pause until the limit: for a look that blocks. The last look is after the limit."""
    yield
    for pause in looks(seconds, each):
        sleep(pause)
        yield


async def wait(
    tasks: Collection[asyncio.Future[Any]], seconds: float, return_when: str = asyncio.ALL_COMPLETED
) -> bool:
    """Wait for tasks on the event loop, for at most so long, and tell whether they are done as `return_when` says."""
    for pause in looks(seconds):
        done, pending = await asyncio.wait(tasks, timeout=pause, return_when=return_when)
        if not pending or (done and return_when == asyncio.FIRST_COMPLETED):
            return True
    return False


async def sleep(seconds: float) -> None:
    """Sleep on the event loop for so long as this process runs."""
    for pause in looks(seconds):
        await asyncio.sleep(pause)


class Countdown:
    """
    Calls a function on the event loop after so many seconds, unless it is cancelled.

    Args:
        seconds: How long it takes.
        action: What to call.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._pauses = looks(seconds)
        self._action = action
        self._handle: asyncio.TimerHandle | None = None
        self._next()

    def cancel(self) -> None:
        """Never call it. Harmless twice, and after it was called."""
        if self._handle is not None:
            self._handle.cancel()

    def _next(self) -> None:
        pause = next(self._pauses, None)
        if pause is None:
            self._action()
        else:
            self._handle = asyncio.get_running_loop().call_later(pause, self._next)


class Alarm(threading.Thread):
    """
    Calls a function after so many seconds on a thread of its own, unless it is cancelled; what `threading.Timer` is.

    Args:
        seconds: How long it takes.
        action: What to call.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        super().__init__(name="alarm", daemon=True)
        self._seconds = seconds
        self._action = action
        self._off = threading.Event()

    def cancel(self) -> None:
        """Never call it. Harmless twice, and after it was called."""
        self._off.set()

    def run(self) -> None:
        """Wait, then call it."""
        if not any(self._off.wait(pause) for pause in looks(self._seconds)):
            self._action()


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process, for at most so long, and tell whether it has ended."""
    for pause in looks(seconds):
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def output_of(command: Sequence[str], seconds: float, stderr: int) -> subprocess.CompletedProcess[bytes]:
    """
    Run a command without input, and return what it wrote.

    Args:
        command: The program and its arguments.
        seconds: How long it may take; then it is killed.
        stderr: Where its errors go: `subprocess.STDOUT` or `subprocess.DEVNULL`.

    Raises:
        OSError: If it cannot be started.
        subprocess.TimeoutExpired: If it takes longer.
    """
    with subprocess.Popen(  # noqa: S603 - callers give fixed programs, and no shell reads them
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
    ) as process:
        try:
            for pause in looks(seconds):
                try:
                    output, _ = process.communicate(timeout=pause)
                except subprocess.TimeoutExpired:
                    continue
                return subprocess.CompletedProcess(command, process.returncode, output)
            raise subprocess.TimeoutExpired(command, seconds)
        finally:
            if process.poll() is None:
                process.kill()

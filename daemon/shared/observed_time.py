"""
Time limits that count only the time in which this process ran.

A process may be stopped (Ctrl-Z, a debugger, a frozen container) or get no processor. When it runs again, the clock has
jumped, and the events that came meanwhile are still unread. A limit that reads the clock only at its end would then
blame an engine that is sound. So a limit here reads the clock often, and a late reading counts as one in time.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

LOOK_SECONDS = 0.25
"""Time between two looks of a wait. A limit is too short by at most so much each time the process is stopped."""


class SeenTime:
    """
    A clock of which at most `most` seconds count between two readings. Any thread.

    Args:
        clock: Seconds that never go back.
        most: Most seconds that count between two readings. It has to be read more often than that.
    """

    def __init__(self, clock: Callable[[], float], most: float) -> None:
        self._clock = clock
        self._most = most
        self._last = clock()
        self._seen = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """Return the seconds that have counted so far."""
        with self._lock:
            self._read()
            return self._seen

    def late(self) -> bool:
        """Read the clock, and return whether the reading was so late that some time did not count."""
        with self._lock:
            return self._read() > self._most

    def _read(self) -> float:
        now = self._clock()
        passed, self._last = now - self._last, now
        self._seen += min(max(0.0, passed), self._most)
        return passed


def looks(seconds: float, each: float = LOOK_SECONDS) -> Iterator[float]:
    """Yield the pauses that make up a limit. Each counts with its nominal length, however late it ends."""
    left = seconds
    while left > 0:
        pause = min(each, left)
        yield pause
        left -= pause


def polls(seconds: float, each: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Yield at once and after each pause: for a loop that blocks its thread. The last time is after the limit."""
    yield
    for pause in looks(seconds, each):
        sleep(pause)
        yield


async def wait(
    tasks: Collection[asyncio.Future[Any]], seconds: float, return_when: str = asyncio.ALL_COMPLETED
) -> bool:
    """Wait for tasks on the event loop for so many seconds, and return whether they are done as `return_when` says."""
    for pause in looks(seconds):
        done, pending = await asyncio.wait(tasks, timeout=pause, return_when=return_when)
        if not pending or (done and return_when == asyncio.FIRST_COMPLETED):
            return True
    return False


async def sleep(seconds: float) -> None:
    """Sleep on the event loop for so many seconds in which this process runs."""
    for pause in looks(seconds):
        await asyncio.sleep(pause)


class Countdown:
    """
    A timer that calls a function on the event loop, unless it is cancelled.

    Args:
        seconds: Seconds until the call.
        action: The function.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._pauses = looks(seconds)
        self._action = action
        self._handle: asyncio.TimerHandle | None = None
        self._next()

    def cancel(self) -> None:
        """Do not call the function. Harmless twice, and after the call."""
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
    A timer that calls a function on a thread of its own, unless it is cancelled; like `threading.Timer`.

    Args:
        seconds: Seconds until the call.
        action: The function.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        super().__init__(name="alarm", daemon=True)
        self._seconds = seconds
        self._action = action
        self._off = threading.Event()

    def cancel(self) -> None:
        """Do not call the function. Harmless twice, and after the call."""
        self._off.set()

    def run(self) -> None:
        """Wait, then call the function; the thread runs this."""
        if not any(self._off.wait(pause) for pause in looks(self._seconds)):
            self._action()


def ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process for so many seconds, and return whether it has ended."""
    for pause in looks(seconds):
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            continue
        return True
    return process.poll() is not None


def output_of(command: Sequence[str], seconds: float, stderr: int) -> subprocess.CompletedProcess[bytes]:
    """
    Run a command without input, and return its output.

    Args:
        command: The program and its arguments.
        seconds: Time limit; then it is killed.
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

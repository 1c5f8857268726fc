"""The loop of the MLX thread: runs what other threads posted, then one step, and measures how long a step runs."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, Protocol


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
            if not self._take(engine.pause) and not engine.busy:
                self._on_idle()
            self._step_began = self._clock()
            engine.step()
            self.steps += 1
            self._step_began = None

    def _take(self, pause: float) -> bool:
        """Wait up to `pause` seconds for posted functions and run them; False if it waited and none came."""
        try:
            action = self._inbox.get(timeout=pause) if pause else self._inbox.get_nowait()
            while True:
                self._step_began = self._clock()  # a function that hangs counts as a step that hangs
                action()
                action = self._inbox.get_nowait()
        except queue.Empty:
            return not pause or self._step_began is not None

    def _stop(self) -> None:
        self._stopping = True

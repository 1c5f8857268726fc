"""The loop of the MLX thread: take what came in, do one step, and know for how long the current step runs."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Protocol


class Steps(Protocol):
    """What the loop drives."""

    @property
    def pause(self) -> float:
        """Seconds for which a step can wait for what is posted; 0 if it has something to do at once."""

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
        on_idle: Called when it has waited in vain and there is no work.
    """

    def __init__(self, clock: Callable[[], float], on_idle: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._on_idle = on_idle
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = False
        self._step_began: float | None = None
        self.steps = 0

    def post(self, action: Callable[[], None]) -> None:
        """Run a function on the loop's thread, before its next step; any thread may call this."""
        self._inbox.put(action)

    def stop(self) -> None:
        """End `run` after the current step; any thread may call this."""
        self.post(self._stop)

    @property
    def step_age(self) -> float | None:
        """Seconds since the current step began; None when idle. Any thread may ask."""
        began, now = self._step_began, self._clock()  # also when idle: a clock may count only what was read of it
        return None if began is None else max(0.0, now - began)

    def run(self, engine: Steps) -> None:
        """Run until `stop`. An exception of a step passes through: state that it left behind cannot be trusted."""
        while not self._stopping:
            if not self._take(engine.pause) and not engine.busy:
                self._on_idle()
            self._step_began = self._clock()
            engine.step()
            self.steps += 1
            self._step_began = None

    def _take(self, pause: float) -> bool:
        """Run what was posted, for which it waits so long, and tell whether there was something or no wait."""
        try:
            action = self._inbox.get(timeout=pause) if pause else self._inbox.get_nowait()
            while True:
                self._step_began = self._clock()
                action()
                action = self._inbox.get_nowait()
        except queue.Empty:
            return not pause or self._step_began is not None

    def _stop(self) -> None:
        self._stopping = True

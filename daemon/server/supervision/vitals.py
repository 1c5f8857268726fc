"""The progress of one engine, as its signs of life tell it: whether it is stalled, and whether it has to be killed."""

from __future__ import annotations

from collections.abc import Callable

from daemon.shared.durations import seconds
from daemon.shared.observed_time import SeenTime
from daemon.v1 import ipc_pb2 as ipc

STALLED_SECONDS = 5.0
"""A step, or a silence, of this length makes the engine STALLED."""
SILENT_SECONDS = 10.0
"""After a silence of this length the engine is killed: its heartbeats come from a thread of their own."""
STUCK_SECONDS = 120.0
"""After a step of this length it is killed. The longest step, a slice of weights from a slow disk, takes less."""
MOST_STUCK = 16
"""Threads that hang on disks that are gone; with so many the engine is killed, because only its end frees them."""


class Vitals:
    """
    The progress of one engine. A new engine gets a new instance.

    Args:
        seen: Seconds that this process saw.
        clock: Seconds that never go back.

    Attributes:
        last_sign: When its last event came, by `seen`.
        threads_stuck: Threads that hang, by its last heartbeat.
    """

    def __init__(self, seen: SeenTime, clock: Callable[[], float]) -> None:
        self.threads_stuck = 0
        self._seen = seen
        self._clock = clock
        self._started = clock()
        self._started_seen = self.last_sign = seen()
        self._step_age_then = 0.0
        """Age of the current step at the last heartbeat; 0 when idle."""

    @property
    def lived(self) -> float:
        """Seconds since its start, by the clock."""
        return self._clock() - self._started

    @property
    def lived_seen(self) -> float:
        """Seconds since its start that this process saw."""
        return self._seen() - self._started_seen

    @property
    def silence(self) -> float:
        """Seconds since its last event."""
        return self._seen() - self.last_sign

    @property
    def step_age(self) -> float:
        """Seconds since its current step began, as far as is known; 0 when idle."""
        return self._step_age_then + self.silence if self._step_age_then else 0.0

    @property
    def stalled(self) -> bool:
        """Whether an engine that takes calls makes no progress."""
        return self.silence > STALLED_SECONDS or self.step_age > STALLED_SECONDS

    @property
    def hopeless(self) -> bool:
        """Whether an engine that takes calls has to be killed."""
        return self.silence > SILENT_SECONDS or self.step_age > STUCK_SECONDS or self.threads_stuck >= MOST_STUCK

    def heartbeat(self, beat: ipc.Heartbeat) -> None:
        """Note the content of a heartbeat."""
        self._step_age_then = seconds(beat.step_age) if beat.HasField("step_age") else 0.0
        self.threads_stuck = beat.stuck

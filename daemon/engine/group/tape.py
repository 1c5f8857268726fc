"""
The tape of a group: everything that an engine's decisions depend on, in the order in which the first rank took it.

    rank 0:  command  turn  reading  reading  turn  reading  outcome  turn ...
                |       |      |        |       |      |        |       |
    rank 1:     v       v      v        v       v      v        v       v     the same calls of the same code

An engine is a machine that decides by what it is told: commands, results of work on other threads, and readings of
clocks, of memory and of chance. The first rank records each of these when it takes it. Another rank runs the same code,
and where the code reads a clock it gets the next reading of the tape. So all ranks begin the same forward passes in the
same order, and MLX's collective operations in them meet. No rank waits for an answer: the tape runs one way.

Only the MLX thread records, and only between `begin` and `end`. Work on other threads reads its own clock, and what it
finds out comes back as an outcome (`answers.py`). Figures for statistics are read `aside`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from daemon.engine.group.connection import Connection
from daemon.v1 import ipc_pb2 as ipc

T = TypeVar("T")


class Diverged(Exception):  # noqa: N818 - it is what happened
    """Ranks did not decide alike: their software, their models or their machines differ."""


class Tape:
    """The tape as a rank's engine sees it. It belongs to the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._runs = False

    def begin(self) -> None:
        """Record, or play back, from now on."""
        self._runs = True

    def end(self) -> None:
        """Stop to record, or to play back."""
        self._runs = False

    def told(self, value: float) -> float:
        """Return the reading that all ranks use: this one, if this is the first rank."""
        if not self._runs or threading.get_ident() != self._thread:
            return value
        return self._next(value)

    def reader(self, read: Callable[[], float]) -> Callable[[], float]:
        """Return a source of readings, such as a clock, that all ranks share."""
        return lambda: self.told(read())

    def aside(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return a function whose readings are this rank's own, and decide nothing."""

        def done() -> T:
            runs, self._runs = self._runs, False
            try:
                return work()
            finally:
                self._runs = runs

        return done

    def _next(self, value: float) -> float:
        raise NotImplementedError


class Recorder(Tape):
    """
    The tape of the first rank.

    Args:
        others: Connections to the other ranks.
    """

    def __init__(self, others: Sequence[Connection]) -> None:
        super().__init__()
        self._others = others

    def write(self, frame: ipc.GroupFrame) -> None:
        """Tell all other ranks."""
        for other in self._others:
            other.send(frame)

    def _next(self, value: float) -> float:
        self.write(ipc.GroupFrame(reading=value))
        return value


class Player(Tape):
    """
    The tape of another rank.

    Args:
        first: The connection to the first rank.
    """

    def __init__(self, first: Connection) -> None:
        super().__init__()
        self._first = first

    def next(self) -> ipc.GroupFrame:
        """Return what comes next on the tape, between two readings."""
        return self._first.receive()

    def _next(self, value: float) -> float:
        frame = self._first.receive()
        if frame.WhichOneof("body") != "reading":
            raise Diverged(f"this rank read where the first did not; there the tape has {frame.WhichOneof('body')}")
        return frame.reading

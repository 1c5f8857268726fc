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
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from daemon.engine.group.connection import Connection
from daemon.v1 import ipc_pb2 as ipc

T = TypeVar("T")

_LATE_SECONDS = 0.002
"""What was told is sent after so long, whatever the engine does."""


class Diverged(Exception):  # noqa: N818 - it is what happened
    """Ranks did not decide alike: their software, their models or their machines differ."""


class Tape(ABC):
    """
    The tape as a rank's engine sees it. It belongs to the thread that made it.

    Attributes:
        place: How far this rank has got: the begins and ends of what it was told, and the readings that it asked for.
            The same number is the same place on each rank. Any thread may read it.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._runs = False
        self.place = 0

    def begin(self) -> None:
        """Record, or play back, from now on."""
        self.place += 1
        self._runs = True

    def end(self) -> None:
        """Stop recording, or playing back."""
        self.place += 1
        self._runs = False

    def agreed(self, value: float) -> float:
        """Return the reading that all ranks use: this one, if this is the first rank."""
        if not self._runs or threading.get_ident() != self._thread:
            return value
        self.place += 1  # before another rank waits for it
        return self._next(value)

    @abstractmethod
    def flush(self) -> None:
        """Send what was told, if this is the first rank."""

    def reader(self, read: Callable[[], float]) -> Callable[[], float]:
        """Return a source of readings, such as a clock, that all ranks share."""
        return lambda: self.agreed(read())

    def aside(self, work: Callable[[], T]) -> Callable[[], T]:
        """Return a function with readings of this rank alone, which decide nothing."""

        def done() -> T:
            runs, self._runs = self._runs, False
            try:
                return work()
            finally:
                self._runs = runs

        return done

    @abstractmethod
    def _next(self, value: float) -> float:
        """Return the next reading of the tape."""


class Recorder(Tape):
    """
    The tape of the first rank.

    Frames are sent together: where the engine says that it is about to wait for the device, and before the loop waits.
    The rest of a turn that another one follows is sent with that, as each message wakes the other ranks. After a moment
    all is sent in any case. For the engine may wait at other places too, and then for a pass that the others begin only
    when they have read on.

    Args:
        others: Connections to the other ranks.
    """

    def __init__(self, others: Sequence[Connection]) -> None:
        super().__init__()
        self._others = others
        self._lock = threading.Lock()
        self._frames: list[bytes] = []
        self._readings: list[float] = []
        self._unsent = threading.Event()
        """Set when something was told that may be left unsent."""

    def start(self) -> None:
        """Begin to send what was left for a moment."""
        threading.Thread(target=self._send_late, name="group-tape", daemon=True).start()

    def write(self, frame: ipc.GroupFrame) -> None:
        """Tell all other ranks, at the next `flush`."""
        with self._lock:
            self._fold()
            self._frames.append(frame.SerializeToString())
        self._unsent.set()

    def flush(self) -> None:
        """Send what was told; any thread."""
        with self._lock:  # held while sending: what is told meanwhile must follow
            self._fold()
            if self._frames:
                for other in self._others:
                    other.send_all(self._frames)
                self._frames = []

    def _next(self, value: float) -> float:
        with self._lock:
            self._readings.append(value)
        if not self._unsent.is_set():
            self._unsent.set()
        return value

    def _fold(self) -> None:
        if self._readings:
            frame = ipc.GroupFrame(readings=ipc.GroupReadings(values=self._readings))
            self._frames.append(frame.SerializeToString())
            self._readings = []

    def _send_late(self) -> None:
        while True:
            self._unsent.wait()
            time.sleep(_LATE_SECONDS)
            self._unsent.clear()  # before it is sent: what is told meanwhile is looked for again
            self.flush()


class Player(Tape):
    """
    The tape of another rank.

    Args:
        first: The connection to the first rank.
    """

    def __init__(self, first: Connection) -> None:
        super().__init__()
        self._first = first
        self._readings: deque[float] = deque()

    def flush(self) -> None:
        """Do nothing: this rank tells nothing."""

    def next(self) -> ipc.GroupFrame:
        """
        Return what comes next on the tape, between two turns.

        Raises:
            Diverged: If the first rank has read what this rank has not.
        """
        if self._readings:
            raise Diverged(f"the first rank read {len(self._readings)} times more than this one")
        return self._first.receive()

    def _next(self, value: float) -> float:
        if not self._readings:
            frame = self._first.receive()
            if not frame.HasField("readings"):
                raise Diverged(f"this rank read where the first did not; there the tape has {frame.WhichOneof('body')}")
            self._readings += frame.readings.values
        return self._readings.popleft()

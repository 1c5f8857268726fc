"""How much of a load to do at a time: as much as running streams hardly notice. Pure; the clock is injected."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from daemon.shared.slices import Sliced

P = TypeVar("P")
R = TypeVar("R")

SLICE_SECONDS = 0.02
"""A slice of a load should take no longer, because running streams wait for it: about a token of a mid-sized model."""

LEAST_BYTES = 1 << 20
_FIRST_BYTES = 4 << 20


@dataclass(slots=True)
class Pace:
    """
    Finds the bytes that take as long to read as streams may wait. It moves by at most a factor of two at a time.

    Attributes:
        most: Most bytes of a slice, whatever the disk can do.
        seconds: Tells how long streams may wait now.
        nbytes: Bytes that the next slice should have; a single array may be larger.
    """

    most: int
    seconds: Callable[[], float] = lambda: SLICE_SECONDS
    nbytes: int = _FIRST_BYTES

    def __post_init__(self) -> None:
        self.nbytes = min(self.most, self.nbytes)

    def measured(self, nbytes: int, seconds: float) -> None:
        """Learn from a slice. Those that are much smaller than planned say little and are left out."""
        if 2 * nbytes >= self.nbytes:
            factor = min(2.0, max(0.5, self.seconds() / max(seconds, 1e-9)))
            self.nbytes = min(self.most, max(LEAST_BYTES, int(self.nbytes * factor)))


def paced(
    work: Sliced[R], report: P, clock: Callable[[], float], seconds: Callable[[], float]
) -> Generator[P, None, R]:
    """
    Join pieces of work into slices: yields `report` when one more piece like the last would make the slice too long.

    Args:
        work: The pieces. One that is longer than a slice is a slice of its own, if it was announced.
        report: What to yield.
        clock: Seconds that never go back.
        seconds: Tells how long a slice may take now.
    """
    began = before = clock()
    while True:
        try:
            is_long = next(work)
        except StopIteration as end:
            result: R = end.value
            return result
        now = clock()
        if is_long or now - began + now - before > seconds():
            yield report
            began = before = clock()
        else:
            before = now


class Share:
    """
    Half of the time: while streams run, a load waits after each slice until they had as long as it took.

    A slice cannot always be short (an array, a layer of a forward pass); that way most gaps of a stream are its own.
    """

    def __init__(self) -> None:
        self._owed = 0.0

    @property
    def due(self) -> bool:
        """Whether the load may go on."""
        return self._owed <= 0

    def loaded(self, seconds: float) -> None:
        """Note how long a slice took."""
        self._owed = seconds

    def served(self, seconds: float) -> None:
        """Note how long streams were served."""
        self._owed -= seconds
